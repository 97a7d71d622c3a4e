import { toast } from "./dom.js";

/**
 * A curl command for a POSIX shell that makes the same request. The key is left to the environment, so that the text can be shared.
 * @param {string} url
 * @param {object} request
 * @param {readonly string[]} headers beside the usual ones
 */
function curlCommand(url, request, headers) {
  return [
    `curl -sS ${url}`,
    `-H "Authorization: Bearer $ATELIER_KEY"`,
    ...["Content-Type: application/json", ...headers].map(header => `-H '${header}'`),
    `-d ${shellQuoted(JSON.stringify(request, null, 2))}`,
  ].join(" \\\n  ");
}

/** @param {string} text */
function shellQuoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * Puts the command for a request into the clipboard.
 * @param {string} path of the API
 * @param {object} request
 * @param {readonly string[]} [headers] beside the usual ones
 */
export async function copyCurl(path, request, headers = []) {
  try {
    await navigator.clipboard.writeText(curlCommand(location.origin + path, request, headers));
    toast("Copied. Set ATELIER_KEY to your key, then paste.");
  } catch {
    toast("The browser refused to copy.");
  }
}
