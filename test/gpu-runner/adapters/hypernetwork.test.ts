import { join } from "node:path";
import { expect, test } from "vitest";
import type { HyperNetwork } from "../../../gpu-runner/adapters/adapter.ts";
import { requireReach } from "../../../gpu-runner/adapters/hypernetwork.ts";
import { openModel } from "../../../gpu-runner/weights/model-source.ts";

test("a hypernetwork none of whose widths the model reads is refused with both", () => {
  const { unet: config } = openModel(join(import.meta.dirname, "../../../models/pocket"));
  const of = (...widths: number[]): HyperNetwork => ({
    kind: "hypernetwork",
    hash: "",
    report: { layout: "a1111", used: [], skipped: [] },
    nets: new Map(widths.map(width => [width, { key: [], value: [] }])),
  });
  expect(requireReach(of(320, 192), "net.pt", { config }).nets.size).toBe(2);
  expect(() => requireReach(of(320, 768), "net.pt", { config })).toThrow(/widths: expected some of 192, 128, .*got 320, 768/);
});
