/** Keys of A1111's hypernetworks, as they are flat in safetensors or lie in the pickle: width, net, module. */

export interface HyperNetworkKey {
  width: number;
  net: "k" | "v";
  /** Within the net: `linear.0.weight`, or `linear1.weight` in the first files. */
  name: string;
}

/** Null for any other key. A pickle holds the pair of nets as a tuple, so that their names are 0 and 1. */
export function hyperNetworkKey(key: string): HyperNetworkKey | null {
  const match = /^(\d{1,5})\.([kv01])\.(linear(?:\.\d{1,3}|[12])\.(?:weight|bias))$/.exec(key);
  if (!match) return null;
  return { width: Number(match[1]), net: match[2] === "k" || match[2] === "0" ? "k" : "v", name: match[3]! };
}
