import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  add,
  asSymbol,
  type Dim,
  dimName,
  equal,
  evaluate,
  floorDivide,
  multiply,
  product,
  symbol,
  symbolsOf,
} from "../../../gpu-runner/graph/dims.ts";

const [B, H, W] = [symbol("B"), symbol("H"), symbol("W")];

/** An expression together with what it should evaluate to. */
interface Expression {
  dim: Dim;
  value: (h: number, w: number) => number;
}

const leaf: fc.Arbitrary<Expression> = fc.oneof(
  fc.integer({ min: -5, max: 9 }).map(n => ({ dim: n as Dim, value: () => n })),
  fc.constant({ dim: H as Dim, value: (h: number) => h }),
  fc.constant({ dim: W as Dim, value: (_: number, w: number) => w }),
);
const { expression } = fc.letrec<{ expression: Expression }>(tie => ({
  expression: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    leaf,
    fc
      .tuple(tie("expression"), tie("expression"))
      .map(([a, b]) => ({ dim: add(a.dim, b.dim), value: (h: number, w: number) => a.value(h, w) + b.value(h, w) })),
    fc
      .tuple(tie("expression"), tie("expression"))
      .map(([a, b]) => ({ dim: multiply(a.dim, b.dim), value: (h: number, w: number) => a.value(h, w) * b.value(h, w) })),
    fc
      .tuple(tie("expression"), fc.integer({ min: 1, max: 4 }))
      .map(([a, n]) => ({ dim: floorDivide(a.dim, n), value: (h: number, w: number) => Math.floor(a.value(h, w) / n) })),
  ),
}));

describe("symbolic dims", () => {
  test("evaluate to what the expression says, whatever the canonical form", () => {
    const size = fc.integer({ min: 1, max: 40 });
    fc.assert(
      fc.property(expression, size, size, ({ dim, value }, h, w) => {
        const sizes = new Map([
          ["H", h],
          ["W", w],
        ]);
        expect(evaluate(dim, sizes)).toBe(value(h, w) + 0);
      }),
    );
  });

  test("equal names mean equal values, and addition and multiplication commute by name", () => {
    fc.assert(
      fc.property(expression, expression, (a, b) => {
        expect(dimName(add(a.dim, b.dim))).toBe(dimName(add(b.dim, a.dim)));
        expect(dimName(multiply(a.dim, b.dim))).toBe(dimName(multiply(b.dim, a.dim)));
      }),
    );
  });

  test("convolutions that halve, once and twice, come out as one expression", () => {
    const half = (dim: Dim): Dim => add(floorDivide(add(dim, -1), 2), 1);
    expect(dimName(half(H))).toBe("floor((H+1)/2)");
    expect(dimName(half(half(H)))).toBe("floor((H+3)/4)");
    expect(dimName(floorDivide(multiply(H, 8), 2))).toBe("4*H");
    expect(dimName(floorDivide(floorDivide(H, 2), 2))).toBe("floor((H)/4)");
  });

  test("names read as written and constants fold", () => {
    expect(dimName(product([B, 4, H, W]))).toBe("4*B*H*W");
    expect(dimName(add(multiply(H, 2), add(W, -3)))).toBe("2*H+W-3");
    expect(add(H, multiply(H, -1))).toBe(0);
    expect(equal(multiply(add(H, 1), 2), add(multiply(H, 2), 2))).toBe(true);
  });

  test("only a bare symbol is a symbol; an unbound one cannot be evaluated", () => {
    expect([asSymbol(H), asSymbol(multiply(H, 2)), asSymbol(add(H, 1)), asSymbol(floorDivide(H, 2)), asSymbol(3)]).toEqual([
      "H",
      null,
      null,
      null,
      null,
    ]);
    expect(symbolsOf(floorDivide(add(multiply(H, W), 1), 2)).sort()).toEqual(["H", "W"]);
    expect(() => evaluate(H, new Map())).toThrow("dimension H: expected a size from the inputs, got none");
  });
});
