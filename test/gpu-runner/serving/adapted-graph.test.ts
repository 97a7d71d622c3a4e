import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type HyperNetwork, type HyperNetworkActivation, hyperNetworkActivations } from "../../../gpu-runner/adapters/adapter.ts";
import type { LoraUse, PredictArgs, TensorF32, TrainableModel } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { buildUnet, plainUnet, type UnetFeatures } from "../../../gpu-runner/models/unet.ts";
import { conditionFeeds } from "../../../gpu-runner/models/unet-feeds.ts";
import { AdaptedGraph } from "../../../gpu-runner/serving/adapted-graph.ts";
import { SessionCache } from "../../../gpu-runner/session.ts";
import { wave } from "../support/graph.ts";
import { goldenModel } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { differences, lora, opaque, pairs, use } from "./loras.ts";

const modelCache = mkdtempSync(join(tmpdir(), "atelier-test-"));
let model: TrainableModel;
beforeAll(async () => {
  model = await loadDiffusionModel(goldenModel, { provider: "cpu", cacheDir: modelCache, threads: 1 });
});
afterAll(async () => {
  await model.release();
  rmSync(modelCache, { recursive: true });
});

const attention = /attn[12]\.to_(q|k|v|out\.0)\.weight$/;
const projections = /(proj_in|proj_out|net\.0\.proj|net\.2|time_emb_proj|time_embedding\.linear_[12])\.weight$/;

/** Conditions of so many items, no two alike. */
function conditions(batch: number, side = 8): Pick<PredictArgs, "sample" | "timesteps" | "encoderHiddenStates"> {
  const width = model.unet.config.crossAttentionDim;
  return {
    sample: wave([batch, 4, side, side]),
    timesteps: Array.from({ length: batch }, (_, i) => 900 - 100 * i),
    encoderHiddenStates: wave([batch, 7, width], 1),
  };
}

function item({ data, shape }: TensorF32, index: number): TensorF32 {
  const size = data.length / shape[0]!;
  return { data: data.slice(index * size, (index + 1) * size), shape: [1, ...shape.slice(1)] };
}

function only<T extends ReturnType<typeof conditions>>({ sample, timesteps, encoderHiddenStates }: T, index: number) {
  return { sample: item(sample, index), timesteps: [timesteps[index]!], encoderHiddenStates: item(encoderHiddenStates, index) };
}

function difference(a: TensorF32, b: TensorF32): number {
  expect(a.shape).toEqual(b.shape);
  return a.data.reduce((most, value, i) => Math.max(most, Math.abs(value - b.data[i]!)), 0);
}

describe("LoRAs", () => {
  test.each([2, 8, 16])("a pair as an input does what the merged weight does, at side %i", async side => {
    const args = conditions(1, side);
    const changes = [
      ...pairs("unet", model.unet.shapes, attention, 2, 0),
      ...pairs("unet", model.unet.shapes, projections, 3, 1),
      ...pairs("unet", model.unet.shapes, /conv_shortcut\.weight$/, 2, 2),
    ];
    const plain = await model.predict(args);
    const asInput = await model.predict({ ...args, loras: [[use(lora("pairs", changes), 0.7)]] });
    const merged = await model.predict({ ...args, loras: [[use(lora("opaque", opaque(changes)), 0.7)]] });
    expect(difference(asInput, merged)).toBeLessThan(2e-5);
    expect(difference(asInput, plain)).toBeGreaterThan(0.01);
  });

  test("each item of a batch has its own set, whatever the others have", async () => {
    const { shapes } = model.unet;
    const [a, b, c] = [
      lora("a", pairs("unet", shapes, attention, 2, 0)),
      lora("b", pairs("unet", shapes, projections, 3, 1)),
      lora("c", [...differences("unet", shapes, /conv1\.(weight|bias)$/, 3), ...pairs("unet", shapes, attention, 1, 4)]),
    ];
    const sets: LoraUse[][] = [[use(a)], [], [use(b, 0.5), use(a, -0.3)], [use(c), use(a)], [use(a)], [use(c)]];
    const args = conditions(sets.length);
    const together = await model.predict({ ...args, loras: sets });
    const alone = await Promise.all(sets.map((set, i) => model.predict({ ...only(args, i), loras: [set] })));
    alone.forEach((result, i) => {
      expect(difference(item(together, i), result), `item ${i}`).toBeLessThan(1e-5);
    });
    expect(difference(alone[3]!, await model.predict({ ...only(args, 3), loras: [[use(a)]] }))).toBeGreaterThan(0.01);
  });

  test("of text encoders work per prompt, and not on the UNet", async () => {
    const shapes = model.weightShapes.textEncoder!;
    const adapter = lora("text", [
      ...pairs("textEncoder", shapes, /(q_proj|fc1)\.weight$/, 2, 0),
      ...differences("textEncoder", shapes, /layer_norm1\.weight$/, 1),
    ]);
    const inputIds = [
      [5, 6, 7],
      [5, 6, 7],
      [9, 8, 7],
    ];
    const encode = async (ids: number[][], loras: LoraUse[][]): Promise<TensorF32> =>
      (await model.encodeText({ encoder: 0, inputIds: ids, loras })).normed(0);
    const together = await encode(inputIds, [[], [use(adapter)], [use(adapter)]]);
    expect(difference(item(together, 0), await encode([inputIds[0]!], []))).toBeLessThan(1e-5);
    expect(difference(item(together, 2), await encode([inputIds[2]!], [[use(adapter)]]))).toBeLessThan(1e-5);
    expect(difference(item(together, 0), item(together, 1))).toBeGreaterThan(0.01);
    const args = conditions(1);
    expect(await model.predict({ ...args, loras: [[use(adapter)]] })).toEqual(await model.predict(args));
  });

  test("of embedding tables, which are no part of the graph, change the rows of the prompts that have them", async () => {
    const shapes = model.weightShapes.textEncoder!;
    const changes = differences("textEncoder", shapes, /(token|position)_embedding\.weight$/, 3);
    const adapter = lora("tables", [...changes, ...pairs("textEncoder", shapes, /q_proj\.weight$/, 2, 0)]);
    const rest = lora("rest", adapter.changes.slice(changes.length));
    const { embeddings, config } = model.textEncoders[0]!;
    const [tokens, positions] = [changes[0]!, changes[1]!].map(({ name, merge }) => {
      return merge(embeddings.table(name.includes("token_") ? "tokens" : "positions"), 0.5, null);
    });
    const encode = async (inputIds: number[][], loras: LoraUse[][], extraEmbeddings?: TensorF32): Promise<TensorF32> =>
      (await model.encodeText({ encoder: 0, inputIds, loras, ...(extraEmbeddings && { extraEmbeddings }) })).normed(0);
    const got = await encode(
      [
        [5, 9, 7],
        [5, 9, 7],
      ],
      [[], [{ ...use(adapter), weight: 0.5 }]],
    );
    expect(difference(item(got, 0), await encode([[5, 9, 7]], [[]]))).toBeLessThan(1e-5);
    // The same rows as new words: each with its position's change in it.
    const { width, vocabularySize } = config;
    const before = embeddings.table("positions");
    const rows = [5, 9, 7].flatMap((id, position) =>
      Array.from({ length: width }, (_, i) => tokens![id * width + i]! + positions![position * width + i]! - before[position * width + i]!),
    );
    const words = { data: Float32Array.from(rows), shape: [3, width] };
    const wanted = await encode([[0, 1, 2].map(row => vocabularySize + row)], [[{ ...use(rest), weight: 0.5 }]], words);
    expect(difference(item(got, 0), item(got, 1))).toBeGreaterThan(0.01);
    expect(difference(item(got, 1), wanted)).toBeLessThan(1e-4);
  });

  test("that do not fit the base are refused by name, expected and got", async () => {
    const args = conditions(1);
    const [change] = pairs("unet", model.unet.shapes, /mid_block.*attn1\.to_q\.weight$/, 2, 0);
    const predict = (changed: Partial<typeof change>) =>
      model.predict({ ...args, loras: [[use(lora("bad", [{ ...change!, ...changed }]))]] });
    await expect(predict({ name: "mid_block.to_q.weight" })).rejects.toThrow("mid_block.to_q.weight: expected the name of a tensor");
    await expect(predict({ shape: [3, 5] })).rejects.toThrow(`${change!.name}: expected shape [${change!.shape}], got [3,5]`);
    await expect(predict({ lowRank: { ...change!.lowRank!, rank: 5 } })).rejects.toThrow("expected down [5, ");
    const [table] = pairs("textEncoder", model.weightShapes.textEncoder!, /token_embedding/, 1, 0);
    const other = lora("table", [{ ...table!, shape: [3, 5] }]);
    await expect(model.encodeText({ encoder: 0, inputIds: [[1]], loras: [[use(other)]] })).rejects.toThrow(
      `${table!.name}: expected shape [${table!.shape}], got [3,5]`,
    );
  });
});

describe("variants", () => {
  /** The model's UNet, which counts how often its graph is built. */
  function countedUnet() {
    const { config, weights, shapes } = model.unet;
    const cacheDir = temporaryFolder();
    const count = { builds: 0 };
    const build = (source: typeof weights, features: UnetFeatures) => {
      count.builds++;
      return buildUnet(config, source, features);
    };
    const unet = new AdaptedGraph({ key: "test", component: "unet", weights, shapes, build }, new SessionCache(), {
      provider: "cpu",
      cacheDir,
      threads: 1,
    });
    const run = (loras: LoraUse[]) => unet.run(plainUnet, conditionFeeds(config, conditions(1)), [{ loras, hypernetworks: [] }]);
    return { run, count, cacheDir, release: () => unet.release() };
  }

  test("another weight or another LoRA on the same layers builds nothing", async () => {
    const { run, count, release } = countedUnet();
    const { shapes } = model.unet;
    const [a, b] = [lora("a", pairs("unet", shapes, attention, 2, 0)), lora("b", pairs("unet", shapes, attention, 5, 1))];
    await run([use(a)]);
    const { builds } = count;
    for (const set of [[use(a, 0.5)], [use(b)], [use(a), use(b, -1)]]) await run(set);
    expect(count.builds).toBe(builds);
    await run([use(lora("c", pairs("unet", shapes, projections, 2, 0)))]);
    expect(count.builds).toBe(builds + 1);
    await release();
  });

  test("a merge that fails leaves no file and no session, and the next try works", async () => {
    const { run, cacheDir, release } = countedUnet();
    const [change] = differences("unet", model.unet.shapes, /conv_in\.bias$/, 0);
    let failing = true;
    const merge: typeof change.merge = (base, weight, dora) => {
      if (failing) throw new Error("no such luck");
      return change!.merge(base, weight, dora);
    };
    const adapter = lora("flaky", [{ ...change!, merge }]);
    mkdirSync(join(cacheDir, "patched"), { recursive: true });
    await expect(run([use(adapter)])).rejects.toThrow("no such luck");
    expect(readdirSync(join(cacheDir, "patched"))).toEqual([]);
    failing = false;
    const { prediction } = await run([use(adapter)]);
    expect(difference(prediction!, await model.predict({ ...conditions(1), loras: [[use(lora("sound", [change!]))]] }))).toBeLessThan(1e-6);
    expect(readdirSync(join(cacheDir, "patched"))).toHaveLength(1);
    await release();
  });
});

describe("hypernetworks", () => {
  /** A net over the text's width that multiplies it: linear layers of its size around one activation. */
  function network(name: HyperNetworkActivation, scale: number): HyperNetwork {
    const width = model.unet.config.crossAttentionDim;
    const layer = (factor: number) => ({
      type: "linear" as const,
      weight: { shape: [width, width], data: Float32Array.from({ length: width * width }, (_, i) => (i % (width + 1) === 0 ? factor : 0)) },
      bias: { shape: [width], data: new Float32Array(width) },
    });
    const layers = [layer(1), { type: "activation" as const, name }, layer(scale)];
    const report = { layout: "test", used: [], skipped: [] };
    return { kind: "hypernetwork", hash: `sha256:${name}-${scale}`, report, nets: new Map([[width, { key: layers, value: layers }]]) };
  }

  test("a net that multiplies the context by 3 is a context times 1 + 2, and a chain applies one after the other", async () => {
    const args = conditions(2);
    const text = args.encoderHiddenStates;
    const times = (factor: number): TensorF32 => ({ ...text, data: text.data.map(value => value * factor) });
    // Self-attention's width is another one here, so that its context stays.
    expect(model.unet.config.levels.every(({ channels }) => channels !== model.unet.config.crossAttentionDim)).toBe(true);
    const triple = network("linear", 2);
    const lists = [
      [{ adapter: triple, weight: 1 }],
      [
        { adapter: triple, weight: 0.25 },
        { adapter: triple, weight: -1 },
      ],
    ];
    const got = await model.predict({ ...args, hypernetworks: lists });
    const [once, chained] = [times(3), times(1.5 * -1)];
    expect(difference(item(got, 0), await model.predict(only({ ...args, encoderHiddenStates: once }, 0)))).toBeLessThan(1e-5);
    expect(difference(item(got, 1), await model.predict(only({ ...args, encoderHiddenStates: chained }, 1)))).toBeLessThan(1e-5);
  });

  test.each(hyperNetworkActivations)("%s builds and changes the picture", async name => {
    const args = conditions(1);
    const changed = await model.predict({ ...args, hypernetworks: [[{ adapter: network(name, 2), weight: 1 }]] });
    expect(difference(changed, await model.predict(args))).toBeGreaterThan(1e-3);
  });
});
