import fc from "fast-check";
import { expect, test } from "vitest";
import type { GrantedExecution } from "../../../gpu-runner/grants.ts";
import { type HeldLease, LeaseTable, leaseId, leasePhases, type Verdict } from "../../../gpu-runner/leases.ts";
import { newExecution, pictureRequest } from "./edge-peer.ts";

const executions = Array.from({ length: 3 }, newExecution);

function granted(execution: string, epoch: number): GrantedExecution {
  return {
    execution,
    epoch,
    requestId: "req",
    attemptDeadline: 0,
    capabilities: { result: "r", progress: "p" },
    request: pictureRequest(),
  };
}
const complete = (lease: { execution: string; epoch: number }): Verdict => ({
  type: "complete",
  ...leaseId(lease),
  result: { sha256: "0".repeat(64), bytes: 1, width: 1, height: 1 },
});
const fail = (lease: { execution: string; epoch: number }): Verdict => ({
  type: "fail",
  ...leaseId(lease),
  code: "runner_failed",
  message: "",
  retryable: true,
});

test("walks from granted to completing, and refuses every other way", () => {
  const moves = {
    computing: (table: LeaseTable, lease: HeldLease) => table.advance(lease, "computing"),
    uploading: (table: LeaseTable, lease: HeldLease) => table.advance(lease, "uploading"),
    completing: (table: LeaseTable, lease: HeldLease) => table.conclude(complete(lease)),
    failing: (table: LeaseTable, lease: HeldLease) => table.conclude(fail(lease)),
  };
  const path = {
    granted: [],
    computing: ["computing"],
    uploading: ["computing", "uploading"],
    completing: ["computing", "uploading", "completing"],
    failing: ["failing"],
  } as const;
  const legal = [
    "granted>computing",
    "granted>failing",
    "computing>uploading",
    "computing>failing",
    "uploading>completing",
    "uploading>failing",
  ];
  for (const phase of leasePhases) {
    for (const target of Object.keys(moves) as (keyof typeof moves)[]) {
      const table = new LeaseTable();
      table.grant(granted(executions[0]!, 1));
      const lease = table.all()[0]!;
      for (const step of path[phase]) moves[step](table, lease);
      expect(lease.phase).toBe(phase);
      const move = () => moves[target](table, lease);
      if (legal.includes(`${phase}>${target}`)) expect(move()).toBe(true);
      else expect(move, `${phase} to ${target}`).toThrow(`cannot go from ${phase} to ${target}`);
    }
  }
});

test("only one lease is computed at a time, the oldest first", () => {
  const table = new LeaseTable();
  for (const execution of executions) table.grant(granted(execution, 1));
  const first = table.next()!;
  expect(first.execution).toBe(executions[0]);
  table.advance(first, "computing");
  expect(table.next()).toBeUndefined();
  expect(() => table.advance({ execution: executions[1]!, epoch: 1 }, "computing")).toThrow("another one is computed");
  table.advance(first, "uploading");
  expect(table.next()?.execution).toBe(executions[1]);
});

test("whatever comes in whatever order: one lease an execution, no epoch taken twice or backwards, what ends is aborted", () => {
  const step = fc.record({
    what: fc.constantFrom("grant", "compute", "upload", "complete", "fail", "end"),
    execution: fc.constantFrom(...executions),
    epoch: fc.integer({ min: 1, max: 4 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), steps => {
      const table = new LeaseTable();
      const taken = new Map<string, number[]>();
      const seen = new Set<HeldLease>();
      for (const { what, execution, epoch } of steps) {
        const lease = table.find({ execution, epoch });
        if (what === "grant" && table.grant(granted(execution, epoch)) === "new")
          taken.set(execution, [...(taken.get(execution) ?? []), epoch]);
        else if (what === "compute" && lease?.phase === "granted" && table.next()) table.advance(lease, "computing");
        else if (what === "upload" && lease?.phase === "computing") table.advance(lease, "uploading");
        else if (what === "complete" && lease?.phase === "uploading") table.conclude(complete(lease));
        else if (what === "fail" && lease && lease.phase !== "completing" && lease.phase !== "failing") table.conclude(fail(lease));
        else if (what === "end") expect(table.end({ execution, epoch })).toBe(lease !== undefined);
        for (const held of table.all()) seen.add(held);

        const held = table.all();
        expect(new Set(held.map(({ execution }) => execution)).size).toBe(held.length);
        expect(table.inPhase("computing").length).toBeLessThanOrEqual(1);
        for (const one of seen) expect(one.ended.aborted).toBe(!held.includes(one));
        for (const one of held) expect(one.verdict !== undefined).toBe(one.phase === "completing" || one.phase === "failing");
        for (const epochs of taken.values()) expect(epochs).toEqual([...new Set(epochs)].sort((a, b) => a - b));
      }
    }),
  );
});
