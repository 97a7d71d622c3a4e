/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */

/**
 * A curl command for a POSIX shell that makes the same request. The key is left to the environment, so that the text can be shared.
 * @param {string} origin of the API
 * @param {GenerationRequest} request
 */
export function curlCommand(origin, request) {
  return [
    `curl -sS ${origin}/v1/generations`,
    `-H "Authorization: Bearer $ATELIER_KEY"`,
    `-H 'Content-Type: application/json'`,
    `-H 'Prefer: wait=60'`,
    `-d ${shellQuoted(JSON.stringify(request, null, 2))}`,
  ].join(" \\\n  ");
}

/** @param {string} text */
function shellQuoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
