/**
 * The first key that occurs twice within one object of a valid JSON text, or null. `JSON.parse` silently keeps the last
 * of two, so a header could show one tensor to a checker and another to a loader.
 */
export function findDuplicateKey(text: string): string | null {
  const objects: (Set<string> | null)[] = [];
  let expectsKey = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '"') {
      const end = endOfString(text, i);
      const keys = objects.at(-1);
      if (expectsKey && keys) {
        const key: unknown = JSON.parse(text.slice(i, end + 1));
        if (typeof key !== "string" || keys.has(key)) return String(key);
        keys.add(key);
        expectsKey = false;
      }
      i = end;
    } else if (character === "{" || character === "[") {
      objects.push(character === "{" ? new Set() : null);
      expectsKey = character === "{";
    } else if (character === "}" || character === "]") {
      objects.pop();
      expectsKey = false;
    } else if (character === ",") {
      expectsKey = objects.at(-1) != null;
    }
  }
  return null;
}

function endOfString(text: string, start: number): number {
  let i = start + 1;
  while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
  return i;
}
