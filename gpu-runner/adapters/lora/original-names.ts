/** The UNet's modules as the original releases name them (CompVis' openaimodel.py), by their names in diffusers. */

const outer: readonly (readonly [string, string])[] = [
  ["time_embedding.linear_1", "time_embed.0"],
  ["time_embedding.linear_2", "time_embed.2"],
  ["add_embedding.linear_1", "label_emb.0.0"],
  ["add_embedding.linear_2", "label_emb.0.2"],
  ["conv_in", "input_blocks.0.0"],
  ["conv_norm_out", "out.0"],
  ["conv_out", "out.2"],
  ["mid_block.resnets.0", "middle_block.0"],
  ["mid_block.attentions.0", "middle_block.1"],
  ["mid_block.resnets.1", "middle_block.2"],
];

const withinResnet: Readonly<Record<string, string>> = {
  norm1: "in_layers.0",
  conv1: "in_layers.2",
  time_emb_proj: "emb_layers.1",
  norm2: "out_layers.0",
  conv2: "out_layers.3",
  conv_shortcut: "skip_connection",
};

/** Every name (a module's, without `.weight`) to the original one. The blocks are counted from the names themselves. */
export function originalUnetNames(modules: readonly string[]): ReadonlyMap<string, string> {
  const blocks = new Map<string, string>([...outer, ...numberedBlocks(new Set(modules.flatMap(blockOf)))]);
  return new Map(
    modules.flatMap(module => {
      const [block] = blockOf(module);
      const original = block === undefined ? undefined : blocks.get(block);
      if (block === undefined || original === undefined) return [];
      const rest = module.slice(block.length + 1);
      const inner = innerName(block, rest);
      return inner === undefined ? [] : [[module, inner === "" ? original : `${original}.${inner}`]];
    }),
  );
}

/** A module's name within its block; undefined where the original has none. */
function innerName(block: string, rest: string): string | undefined {
  if (block.includes(".resnets.")) return withinResnet[rest];
  return block.includes(".downsamplers.") ? "op" : rest;
}

/** The block that a module belongs to, such as `down_blocks.0.resnets.1`; none for what stands elsewhere. */
function blockOf(module: string): string[] {
  const numbered = /^(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+/.exec(module);
  if (numbered) return [numbered[0]];
  return outer.flatMap(([name]) => (name === module ? [name] : []));
}

/** Down: the residual blocks of a level, then its downsampler; up: an upsampler shares the number of the block before it. */
function numberedBlocks(names: ReadonlySet<string>): [string, string][] {
  const pairs: [string, string][] = [];
  let count = 1;
  for (let level = 0; names.has(`down_blocks.${level}.resnets.0`); level++) {
    const place = `down_blocks.${level}`;
    for (let i = 0; names.has(`${place}.resnets.${i}`); i++, count++) {
      pairs.push([`${place}.resnets.${i}`, `input_blocks.${count}.0`], [`${place}.attentions.${i}`, `input_blocks.${count}.1`]);
    }
    if (names.has(`${place}.downsamplers.0`)) pairs.push([`${place}.downsamplers.0`, `input_blocks.${count++}.0`]);
  }
  count = 0;
  for (let level = 0; names.has(`up_blocks.${level}.resnets.0`); level++) {
    const place = `up_blocks.${level}`;
    for (let i = 0; names.has(`${place}.resnets.${i}`); i++, count++) {
      pairs.push([`${place}.resnets.${i}`, `output_blocks.${count}.0`], [`${place}.attentions.${i}`, `output_blocks.${count}.1`]);
    }
    const after = names.has(`${place}.attentions.0`) ? 2 : 1;
    pairs.push([`${place}.upsamplers.0`, `output_blocks.${count - 1}.${after}`]);
  }
  return pairs;
}
