/** Makes a `DiffusionModel` from published weights: a diffusers folder or a single file. */
import type { WeightShapes } from "./adapters/adapter.ts";
import { IpKeysValues } from "./adapters/ip-adapter/keys-values.ts";
import type {
  DiffusionModel,
  EncodeTextArgs,
  LoadOptions,
  PredictArgs,
  TensorF32,
  TextEncoderBase,
  TextEncoding,
  TrainableModel,
  UnetBase,
} from "./components.ts";
import { emitterFor } from "./graph/emitter.ts";
import type { Graph, StoredTensor } from "./graph/ir.ts";
import { checkModel, requireSound } from "./inspect.ts";
import { buildTextEncoder, hiddenName, normedName, poolingPosition } from "./models/clip-text.ts";
import { buildModelGraphs, type ModelGraphs } from "./models/model-graphs.ts";
import { buildTaesdDecoder, clampLatents, openTaesd } from "./models/taesd.ts";
import { buildUnet } from "./models/unet.ts";
import { conditionFeeds, featureFeeds, featuresOf } from "./models/unet-feeds.ts";
import { AdaptedEmbeddings } from "./serving/adapted-embeddings.ts";
import { AdaptedGraph, type AdapterFeatures } from "./serving/adapted-graph.ts";
import { createSession, type Feeds, SessionCache, type SessionLease } from "./session.ts";
import { holdDerived } from "./weights/derived-files.ts";
import { describeSource, type ModelDescription } from "./weights/describe.ts";
import type { ComponentName } from "./weights/key-layouts.ts";
import { ModelError } from "./weights/model-error.ts";
import { hashModel, type ModelSource, openModel } from "./weights/model-source.ts";
import { placeTensors } from "./weights/placement.ts";
import type { SourceTensor } from "./weights/sorted-keys.ts";
import { PlacedWeights, type WeightSource } from "./weights/weights.ts";

/** Sessions of this process: two models of one hash share theirs. */
const sessions = new SessionCache();

/**
 * Reads, hashes and checks the whole model and builds every graph, so that a bad model fails here and not at its first
 * picture; a session is made when it is first used. Throws ModelError, GraphError, ProviderError or CacheError.
 */
export async function loadDiffusionModel(path: string, options: LoadOptions): Promise<TrainableModel> {
  emitterFor(options.provider);
  const source = openModel(path);
  // Before anything is hashed or written: a model that cannot be loaded is refused at once.
  const checked = checkModel(source);
  requireSound(checked);
  const { hash, files } = await hashModel(source, options.cacheDir);
  const weights = placeParts(new Map([...checked.parts].map(([name, { taken }]) => [name, taken])), files, options.cacheDir);
  const shapes = new Map([...checked.parts].map(([name, part]) => [name, part.shapes] as const));
  return new LoadedModel({
    description: describeSource(source, hash),
    source,
    unet: { hash, config: source.unet, weights: weights.get("unet")!, shapes: shapes.get("unet")! },
    weightShapes: Object.fromEntries([...shapes].filter(([name]) => name !== "vae")),
    graphs: buildModelGraphs(source, name => weights.get(name)!),
    preview: previewGraph(source, options.cacheDir),
    files: [...weights.values()].flatMap(part => part.files()),
    options,
  });
}

/** The graph of the TAESD-type decoder that lies with a model, if any. */
function previewGraph({ vae, previewDecoder }: ModelSource, cacheDir: string): Graph | null {
  if (previewDecoder === null) return null;
  const decoder = openTaesd(previewDecoder, cacheDir);
  if (decoder.latentChannels !== vae.latentChannels)
    throw new ModelError(
      previewDecoder,
      "latent channels",
      `${vae.latentChannels}, as the autoencoder has`,
      String(decoder.latentChannels),
    );
  return buildTaesdDecoder(decoder);
}

/** The weights of each part as they can be mapped, in as few sidecars as there are files. */
function placeParts(
  taken: ReadonlyMap<ComponentName, ReadonlyMap<string, SourceTensor>>,
  hashes: ReadonlyMap<string, string>,
  cacheDir: string,
): Map<ComponentName, PlacedWeights> {
  const all = [...taken.values()].flatMap(tensors => [...tensors.values()]);
  const placed = new Map<ComponentName, Map<string, StoredTensor>>([...taken.keys()].map(name => [name, new Map()]));
  for (const [file, tensors] of Map.groupBy(all, tensor => tensor.file)) {
    const stored = placeTensors(tensors, file, hashes.get(file)!, cacheDir);
    for (const [i, { component, name }] of tensors.entries()) placed.get(component)!.set(name, stored[i]!);
  }
  return new Map([...placed].map(([name, tensors]) => [name, new PlacedWeights(tensors)]));
}

interface Loaded {
  description: ModelDescription;
  source: ModelSource;
  weightShapes: WeightShapes;
  unet: UnetBase;
  graphs: ModelGraphs;
  /** Of a preview decoder. */
  preview: Graph | null;
  /** Where its weights lie. */
  files: readonly string[];
  options: LoadOptions;
}

class LoadedModel implements TrainableModel {
  readonly description: ModelDescription;
  readonly weightShapes: WeightShapes;
  readonly unet: UnetBase;
  readonly source: ModelSource;
  readonly textEncoders: readonly TextEncoderBase[];
  readonly decodePreview: DiffusionModel["decodePreview"];
  readonly #graphs: ModelGraphs;
  readonly #adaptedUnet: AdaptedGraph<ReturnType<typeof featuresOf>>;
  /** In the order of `graphs.textEncoders`. */
  readonly #adaptedTexts: readonly AdaptedGraph<Record<never, never>>[];
  readonly #adaptedEmbeddings: readonly AdaptedEmbeddings[];
  readonly #keysValues: IpKeysValues;
  readonly #options: LoadOptions;
  readonly #leases = new Map<string, SessionLease>();
  /** Sessions are made when they are first used, of what has to lie there then. */
  readonly #letGo: () => void;
  #released = false;

  constructor({ description, source, weightShapes, unet, graphs, preview, files, options }: Loaded) {
    this.description = description;
    this.weightShapes = weightShapes;
    this.unet = unet;
    this.source = source;
    this.#graphs = graphs;
    this.textEncoders = graphs.textEncoders.map(({ component, config, weights, embeddings }) => ({
      component,
      config,
      weights,
      embeddings,
      shapes: weightShapes[component]!,
    }));
    const { hash, config, weights, shapes } = unet;
    this.#adaptedUnet = new AdaptedGraph(
      { key: hash, component: "unet", weights, shapes, build: (source, features) => buildUnet(config, source, features) },
      sessions,
      options,
    );
    this.#adaptedTexts = graphs.textEncoders.map(part => {
      const build = (source: WeightSource, { lowRank }: AdapterFeatures): Graph => buildTextEncoder(part.config, source, lowRank);
      const base = { key: hash, component: part.component, weights: part.weights, shapes: weightShapes[part.component]!, build };
      return new AdaptedGraph(base, sessions, options);
    });
    this.#adaptedEmbeddings = graphs.textEncoders.map(({ component, embeddings }) => new AdaptedEmbeddings(component, embeddings));
    this.#keysValues = new IpKeysValues(config, sessions, options);
    this.#options = options;
    const previewFiles = preview?.weights.map(({ stored }) => stored!.file) ?? [];
    this.#letGo = holdDerived([...files, ...previewFiles], options.cacheDir);
    this.decodePreview = preview && (latents => this.#decodePreview(preview, latents));
  }

  async encodeText({ encoder, inputIds, extraEmbeddings, loras }: EncodeTextArgs): Promise<TextEncoding> {
    const { textEncoders } = this.#graphs;
    const part = textEncoders[encoder];
    if (!part) throw new RangeError(`text encoder: expected 0 to ${textEncoders.length - 1}, got ${encoder}`);
    const { config } = part;
    const embeddings = this.#adaptedEmbeddings[encoder]!;
    const items = inputIds.map((_, i) => ({ loras: embeddings.rest(loras?.[i] ?? []), hypernetworks: [] }));
    const feeds = { embeddings: embeddings.embed(inputIds, extraEmbeddings, loras ?? []) };
    const out = await this.#adaptedTexts[encoder]!.run({}, feeds, items);
    const state = (name: (skip: number) => string) => (skip: number) => {
      const found = out[name(skip)];
      if (!found) throw new RangeError(`clip skip: expected 0 to ${config.layers}, got ${skip}`);
      return found;
    };
    return {
      hidden: state(hiddenName),
      normed: state(normedName),
      pooled: pickRows(
        out.projected ?? out[normedName(0)]!,
        inputIds.map(ids => poolingPosition(ids, config)),
      ),
    };
  }

  async predict(args: PredictArgs): Promise<TensorF32> {
    const { config } = this.unet;
    const keysValues = await Promise.all((args.ipAdapters ?? []).map(({ layers, tokens }) => this.#keysValues.of(layers, tokens)));
    const feeds = { ...conditionFeeds(config, args), ...featureFeeds(config, args, keysValues) };
    const items = args.timesteps.map((_, i) => ({ loras: args.loras?.[i] ?? [], hypernetworks: args.hypernetworks?.[i] ?? [] }));
    return (await this.#adaptedUnet.run(featuresOf(args), feeds, items)).prediction!;
  }

  async encodeImage(image: TensorF32): Promise<{ mean: TensorF32; logvar: TensorF32 }> {
    const { mean, logvar } = await this.#run("vaeEncoder", this.#graphs.vaeEncoder, { image });
    return { mean: mean!, logvar: logvar! };
  }

  async decodeLatents(latents: TensorF32): Promise<TensorF32> {
    return (await this.#run("vaeDecoder", this.#graphs.vaeDecoder, { latents })).sample!;
  }

  async #decodePreview(graph: Graph, latents: TensorF32): Promise<TensorF32> {
    const { sample } = await this.#run("preview", graph, { latents: clampLatents(latents) });
    return { data: sample!.data.map(value => 2 * value - 1), shape: sample!.shape };
  }

  async release(): Promise<void> {
    if (this.#released) return;
    this.#released = true;
    this.#letGo();
    for (const { embeddings } of this.#graphs.textEncoders) embeddings.close();
    await Promise.all([...this.#leases.values(), this.#adaptedUnet, ...this.#adaptedTexts, this.#keysValues].map(held => held.release()));
  }

  /** Runs a graph's session, which is made at its first run. */
  async #run(name: string, graph: Graph, feeds: Feeds): Promise<Record<string, TensorF32>> {
    if (this.#released) throw new Error(`model ${this.description.hash}: expected one in use, got one that was released`);
    const { provider, threads } = this.#options;
    const key = `${this.description.hash}/${provider}/${threads ?? "all"}/${name}`;
    const lease = this.#leases.get(name) ?? sessions.acquire(key, () => createSession(graph, this.#options));
    this.#leases.set(name, lease);
    const session = await lease.session.catch(error => {
      // Not kept, so that the next run tries again.
      this.#leases.delete(name);
      throw error;
    });
    return session.run(feeds);
  }
}

/** Row positions[b] of each item of [B, L, C], as [B, C]. */
function pickRows({ data, shape }: TensorF32, positions: readonly number[]): TensorF32 {
  const [batch, length, width] = shape as [number, number, number];
  const out = new Float32Array(batch * width);
  positions.forEach((position, b) => {
    const start = (b * length + position) * width;
    out.set(data.subarray(start, start + width), b * width);
  });
  return { data: out, shape: [batch, width] };
}
