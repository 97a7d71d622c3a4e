/** Loss curves as a small SVG. */
export interface Line {
  label: string;
  points: readonly (readonly [number, number])[];
}

const [width, height, margin] = [640, 220, 36];

/** Steps to the right, losses upwards from 0; a line for each, in hues evenly apart. */
export function curve(lines: readonly Line[]): string {
  const all = lines.flatMap(({ points }) => points);
  const [last, most] = [Math.max(...all.map(([step]) => step), 1), Math.max(...all.map(([, loss]) => loss), 1e-9)];
  const x = (step: number) => (margin + (step / last) * (width - 2 * margin)).toFixed(1);
  const y = (loss: number) => (height - margin - (loss / most) * (height - 2 * margin)).toFixed(1);
  const paths = lines.map(({ points, label }, i) => {
    const hue = Math.round((360 * i) / lines.length);
    const steps = points.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" ");
    return `<polyline fill="none" stroke="hsl(${hue} 65% 45%)" stroke-width="1.3" points="${steps}"><title>${label}</title></polyline>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11">
<title>loss by step</title>
<rect width="${width}" height="${height}" fill="#fff"/>
<path d="M${margin} ${margin}V${height - margin}H${width - margin}" fill="none" stroke="#999"/>
<text x="${margin}" y="${margin - 6}">loss, up to ${most.toFixed(2)}</text>
<text x="${width - margin}" y="${height - margin + 16}" text-anchor="end">step ${last}</text>
${paths.join("\n")}
</svg>
`;
}
