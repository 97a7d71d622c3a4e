import { refuseKey } from "./access.js";
import { ApiError } from "./api.js";
import { make } from "./dom.js";
import { sentence, showFieldErrors } from "./fields.js";

/** @typedef {import("./api.js").Problem} Problem */

/**
 * Shows why something was refused: beside the fields where they are named, else in a box.
 * @param {Problem} problem
 * @param {HTMLElement} box
 */
export function showProblem(problem, box) {
  const unplaced = showFieldErrors(problem.errors ?? []);
  if (problem.errors?.length && unplaced.length === 0) return;
  const lines = unplaced.map(({ field, expected, got }) => make("span", {}, `${field}: ${sentence(expected, got)}`));
  box.replaceChildren(problem.detail ?? problem.title, ...lines);
  if (problem.status >= 500 && problem.instance) box.append(make("span", { className: "muted" }, `Request ${problem.instance}`));
  box.hidden = false;
}

/**
 * Says why something did not work: a refused key beside the key, everything else by `showProblem`.
 * @param {unknown} error
 * @param {HTMLElement} box
 */
export function refuse(error, box) {
  if (!(error instanceof ApiError)) {
    showProblem({ type: "about:blank", title: "The server cannot be reached.", status: 0, code: "unavailable" }, box);
    if (!(error instanceof TypeError)) throw error;
    return;
  }
  if (error.problem.status === 401) refuseKey(error.message);
  else showProblem(error.problem, box);
}
