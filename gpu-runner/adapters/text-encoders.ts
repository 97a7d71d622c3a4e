/** The text encoders of a base, in the order in which a pipeline numbers them: an SDXL refiner's one is `textEncoder2`. */
import type { AdapterComponent, WeightShapes } from "./adapter.ts";

export interface TextEncoderWidth {
  component: AdapterComponent;
  width: number;
}

export function textEncoders(shapes: WeightShapes): TextEncoderWidth[] {
  const order: AdapterComponent[] = ["textEncoder", "textEncoder2"];
  return order.flatMap(component => {
    const width = shapes[component]?.get("embeddings.token_embedding.weight")?.[1];
    return width === undefined ? [] : [{ component, width }];
  });
}
