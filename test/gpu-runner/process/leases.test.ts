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
    capabilities: { result: "r", progress: "p", checkpoint: null },
    inputs: [],
    adapters: [],
    kind: "picture" as const,
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
      table.grant(granted(executions[0]!, 1), table.newBatch());
      const lease = table.all()[0]!;
      for (const step of path[phase]) moves[step](table, lease);
      expect(lease.phase).toBe(phase);
      const move = () => moves[target](table, lease);
      if (legal.includes(`${phase}>${target}`)) expect(move()).toBe(true);
      else expect(move, `${phase} to ${target}`).toThrow(`cannot go from ${phase} to ${target}`);
    }
  }
});

const here = { files: {}, adapters: {} };

test("only one batch is computed at a time: the oldest that has all its inputs", () => {
  const table = new LeaseTable();
  const [first, second] = [table.newBatch(), table.newBatch()];
  table.grant(granted(executions[0]!, 1), first);
  table.grant(granted(executions[1]!, 1), first);
  table.grant(granted(executions[2]!, 1), second);
  const ids = executions.map(execution => ({ execution, epoch: 1 }));
  const next = () => table.next().map(({ execution }) => executions.indexOf(execution));
  const seen = [next()];
  for (const id of [ids[0]!, ids[2]!, ids[1]!]) {
    table.arrived(id, here);
    seen.push(next());
  }
  expect(seen).toEqual([[], [], [2], [0, 1]]);
  table.advance(ids[0]!, "computing");
  expect(next()).toEqual([]);
  expect(() => table.advance(ids[2]!, "computing")).toThrow("another batch is computed");
  table.advance(ids[1]!, "computing");
  for (const id of [ids[0]!, ids[1]!]) table.advance(id, "uploading");
  expect(next()).toEqual([2]);
  expect(table.arrived({ execution: executions[2]!, epoch: 2 }, here)).toBe(false);
});

test("between a training's steps pictures are computed, but no second training, and no training beside pictures", () => {
  const table = new LeaseTable();
  const [training, picture, other] = [
    { ...granted(executions[0]!, 1), kind: "training" },
    granted(executions[1]!, 1),
    { ...granted(executions[2]!, 1), kind: "training" },
  ] as GrantedExecution[];
  for (const each of [training!, picture!, other!]) {
    table.grant(each, table.newBatch());
    table.arrived(each, here);
  }
  expect(table.next().map(({ execution }) => execution)).toEqual([executions[0]]);
  table.advance(training!, "computing");
  expect(table.next()).toEqual([]);
  expect(table.next(true).map(({ execution }) => execution)).toEqual([executions[1]]);
  table.advance(picture!, "computing");
  expect(table.next(true)).toEqual([]);
  expect(() => table.advance(other!, "computing")).toThrow("another batch is computed");
  table.advance(training!, "uploading");
  expect(() => table.advance(other!, "computing")).toThrow("another batch is computed");
});

test("whatever comes in whatever order: one lease an execution, no epoch taken twice or backwards, what ends is aborted", () => {
  const step = fc.record({
    what: fc.constantFrom("grant", "arrive", "compute", "upload", "complete", "fail", "end"),
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
        if (what === "grant" && table.grant(granted(execution, epoch), epoch) === "new")
          taken.set(execution, [...(taken.get(execution) ?? []), epoch]);
        else if (what === "arrive") expect(table.arrived({ execution, epoch }, here)).toBe(lease !== undefined);
        else if (what === "compute") for (const each of table.next()) table.advance(each, "computing");
        else if (what === "upload" && lease?.phase === "computing") table.advance(lease, "uploading");
        else if (what === "complete" && lease?.phase === "uploading") table.conclude(complete(lease));
        else if (what === "fail" && lease && lease.phase !== "completing" && lease.phase !== "failing") table.conclude(fail(lease));
        else if (what === "end") expect(table.end({ execution, epoch })).toBe(lease !== undefined);
        for (const held of table.all()) seen.add(held);

        const held = table.all();
        expect(new Set(held.map(({ execution }) => execution)).size).toBe(held.length);
        expect(new Set(table.inPhase("computing").map(({ batch }) => batch)).size).toBeLessThanOrEqual(1);
        expect(table.inPhase("computing").every(({ fetched }) => fetched)).toBe(true);
        for (const one of seen) expect(one.ended.aborted).toBe(!held.includes(one));
        for (const one of held) expect(one.verdict !== undefined).toBe(one.phase === "completing" || one.phase === "failing");
        for (const epochs of taken.values()) expect(epochs).toEqual([...new Set(epochs)].sort((a, b) => a - b));
      }
    }),
  );
});
