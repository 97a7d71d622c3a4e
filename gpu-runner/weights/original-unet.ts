/** The UNet's modules as the original releases name them (CompVis' openaimodel.py), by their names in diffusers. */

/** Modules whose names do not depend on the geometry. */
const fixedNames: readonly (readonly [diffusers: string, original: string])[] = [
  ["time_embedding.linear_1", "time_embed.0"],
  ["time_embedding.linear_2", "time_embed.2"],
  ["time_embedding.cond_proj", "time_embed.cond_proj"],
  ["add_embedding.linear_1", "label_emb.0.0"],
  ["add_embedding.linear_2", "label_emb.0.2"],
  ["conv_in", "input_blocks.0.0"],
  ["conv_norm_out", "out.0"],
  ["conv_out", "out.2"],
  ["mid_block.resnets.0", "middle_block.0"],
  ["mid_block.attentions.0", "middle_block.1"],
  ["mid_block.resnets.1", "middle_block.2"],
];

/** Layers of a residual block; those of an attention block have the same names in both. */
export const originalResnetLayers = {
  norm1: "in_layers.0",
  conv1: "in_layers.2",
  time_emb_proj: "emb_layers.1",
  norm2: "out_layers.0",
  conv2: "out_layers.3",
  conv_shortcut: "skip_connection",
} as const satisfies Readonly<Record<string, string>>;
const resnetLayers: Readonly<Record<string, string>> = originalResnetLayers;

/** A level as far as names go; from the highest resolution down. */
export interface NamedLevel {
  layers: number;
  downAttends: boolean;
  /** Of the up block that mirrors this level. */
  upAttends: boolean;
}

/** Original names of all blocks, samplers and outer layers by those of diffusers; the original counts blocks through all levels. */
export function originalUnetBlocks(levels: readonly NamedLevel[]): ReadonlyMap<string, string> {
  const blocks = new Map(fixedNames);
  let input = 1;
  levels.forEach(({ layers, downAttends }, i) => {
    for (let j = 0; j < layers; j++, input++) {
      blocks.set(`down_blocks.${i}.resnets.${j}`, `input_blocks.${input}.0`);
      if (downAttends) blocks.set(`down_blocks.${i}.attentions.${j}`, `input_blocks.${input}.1`);
    }
    if (i < levels.length - 1) blocks.set(`down_blocks.${i}.downsamplers.0.conv`, `input_blocks.${input++}.0.op`);
  });
  let output = 0;
  levels.toReversed().forEach(({ layers, upAttends }, i) => {
    for (let j = 0; j <= layers; j++, output++) {
      blocks.set(`up_blocks.${i}.resnets.${j}`, `output_blocks.${output}.0`);
      if (upAttends) blocks.set(`up_blocks.${i}.attentions.${j}`, `output_blocks.${output}.1`);
    }
    // The upsampler is the last member of the level's last block.
    if (i < levels.length - 1) blocks.set(`up_blocks.${i}.upsamplers.0.conv`, `output_blocks.${output - 1}.${upAttends ? 2 : 1}.conv`);
  });
  return blocks;
}

/** The original name of a module (without `.weight`), by the names of `originalUnetBlocks`; undefined where it has none. */
export function originalModule(module: string, blocks: ReadonlyMap<string, string>): string | undefined {
  for (let end = module.length; end > 0; end = module.lastIndexOf(".", end - 1)) {
    const name = module.slice(0, end);
    const block = blocks.get(name);
    if (block === undefined) continue;
    const rest = module.slice(end + 1);
    if (rest === "") return block;
    const layer = name.includes(".resnets.") ? resnetLayers[rest] : rest;
    return layer && `${block}.${layer}`;
  }
  return undefined;
}

/** The levels that the names of a UNet's modules show. */
export function levelsOfModules(modules: Iterable<string>): NamedLevel[] {
  const names = new Set([...modules].flatMap(module => /^(?:down|up)_blocks\.\d+\.(?:resnets|attentions)\.\d+/.exec(module)?.[0] ?? []));
  const levels: NamedLevel[] = [];
  for (let i = 0; names.has(`down_blocks.${i}.resnets.0`); i++) {
    let layers = 1;
    while (names.has(`down_blocks.${i}.resnets.${layers}`)) layers++;
    levels.push({ layers, downAttends: names.has(`down_blocks.${i}.attentions.0`), upAttends: false });
  }
  return levels.map((level, i) => ({ ...level, upAttends: names.has(`up_blocks.${levels.length - 1 - i}.attentions.0`) }));
}
