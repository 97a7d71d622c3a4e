/** The value of a JSON text, or undefined where it is none: for texts from outside, whose schema says next what was expected. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
