import { html } from "hono/html";
import { z } from "zod";

/** The reference page: the API's OpenAPI description as plain HTML, without script. */

const schemaShape = z.looseObject({
  $ref: z.string().optional(),
  type: z.union([z.string(), z.array(z.string())]).optional(),
  format: z.string().optional(),
  enum: z.array(z.unknown()).optional(),
  items: z.unknown().optional(),
  prefixItems: z.array(z.unknown()).optional(),
  anyOf: z.array(z.unknown()).optional(),
  allOf: z.array(z.unknown()).optional(),
  properties: z.record(z.string(), z.unknown()).optional(),
  required: z.array(z.string()).optional(),
  default: z.unknown().optional(),
  description: z.string().optional(),
  minimum: z.number().optional(),
  maximum: z.number().optional(),
});
const contentShape = z.record(z.string(), z.object({ schema: z.unknown().optional() })).optional();
const operationShape = z.object({
  summary: z.string().default(""),
  description: z.string().optional(),
  security: z.array(z.record(z.string(), z.unknown())).default([]),
  parameters: z
    .array(
      z.object({
        name: z.string(),
        in: z.string(),
        required: z.boolean().optional(),
        schema: z.unknown(),
        description: z.string().optional(),
      }),
    )
    .default([]),
  requestBody: z.object({ content: contentShape }).optional(),
  responses: z.record(z.string(), z.object({ description: z.string(), content: contentShape })),
});
const documentShape = z.object({
  info: z.object({ title: z.string(), description: z.string() }),
  paths: z.record(z.string(), z.record(z.string(), operationShape)),
  components: z.object({ schemas: z.record(z.string(), z.unknown()) }),
});
type Operation = z.infer<typeof operationShape>;

interface Field {
  readonly name: string;
  readonly type: string;
  readonly note: string;
}

/** The page of an OpenAPI document. `nonce` is what the page's Content-Security-Policy allows its style by. */
export function referencePage(openapi: unknown, nonce: string) {
  const { info, paths, components } = documentShape.parse(openapi);
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  const groups = [
    { title: "API", members: operations.filter(({ path }) => path.startsWith("/v1/")) },
    { title: "Operator", members: operations.filter(({ path }) => path.startsWith("/admin/")) },
  ];
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>${info.title} API</title>
        <style nonce="${nonce}">
          ${style}
        </style>
      </head>
      <body>
        <header>
          <h1>${info.title} API</h1>
          <p>${info.description}</p>
          <p>Send a key as <code>Authorization: Bearer atl_…</code>. The same for programs: <a href="/openapi.json">openapi.json</a>. Try it out: <a href="/">playground</a>.</p>
        </header>
        <main>
          ${groups.map(({ title, members }) => html`<h2>${title}</h2>${members.map(member => section(member))}`)}
          <h2>Schemas</h2>
          ${Object.entries(components.schemas).map(([name, schema]) => html`<article id="${name}"><h3>${name}</h3>${fieldTable(fieldsOf(schema))}</article>`)}
        </main>
      </body>
    </html>`;
}

function section({ path, method, operation }: { path: string; method: string; operation: Operation }) {
  const parameters = operation.parameters.map(parameter => ({
    name: `${parameter.name}${parameter.required ? "" : "?"}`,
    type: `${typeOf(parameter.schema)}, in the ${parameter.in}`,
    note: parameter.description ?? noteOf(parameter.schema),
  }));
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const keyless = operation.security.some(scheme => Object.keys(scheme).length === 0);
  return html`<article>
    <h3><code>${method} ${path}</code></h3>
    <p>${operation.summary}.${keyless ? " The key may be absent." : ""} ${operation.description ?? ""}</p>
    ${parameters.length > 0 ? fieldTable(parameters) : ""}
    ${body === undefined ? "" : html`<h4>Body</h4>${schemaName(body) ? html`<p>${reference(body)}</p>` : fieldTable(fieldsOf(body))}`}
    <h4>Answers</h4>
    <dl>
      ${Object.entries(operation.responses).map(([status, { description, content }]) => {
        const answers = Object.entries(content ?? {});
        return html`<dt>${status === "default" ? "else" : status}</dt><dd>${description}${answers.map(([media, { schema }]) => html`, <code>${media}</code> ${schema === undefined ? "" : reference(schema)}`)}</dd>`;
      })}
    </dl>
  </article>`;
}

function fieldTable(fields: readonly Field[]) {
  return html`<table>
    <tbody>
      ${fields.map(({ name, type, note }) => html`<tr><th scope="row"><code>${name}</code></th><td>${type}</td><td>${note}</td></tr>`)}
    </tbody>
  </table>`;
}

function fieldsOf(schema: unknown): Field[] {
  const { properties = {}, required = [] } = schemaShape.parse(schema);
  return Object.entries(properties).map(([name, property]) => ({
    name: `${name}${required.includes(name) ? "" : "?"}`,
    type: typeOf(property),
    note: noteOf(property),
  }));
}

function schemaName(schema: unknown): string | undefined {
  return schemaShape
    .parse(schema ?? {})
    .$ref?.split("/")
    .at(-1);
}

function reference(schema: unknown) {
  const name = schemaName(schema);
  return name === undefined ? typeOf(schema) : html`<a href="#${name}">${name}</a>`;
}

function typeOf(schema: unknown): string {
  const { type, enum: values, items, format, anyOf, allOf, prefixItems, properties } = schemaShape.parse(schema ?? {});
  const name = schemaName(schema);
  if (name !== undefined) return name;
  if (anyOf) return anyOf.map(typeOf).join(" or ");
  if (allOf) return allOf.map(typeOf).join(" and ");
  if (prefixItems) return `[${prefixItems.map(typeOf).join(", ")}]`;
  if (values) return values.map(value => JSON.stringify(value)).join(" | ");
  if (items !== undefined) return `list of ${typeOf(items)}`;
  const shape = properties && `{${Object.keys(properties).join(", ")}}`;
  return [
    [type ?? "any"]
      .flat()
      .join(" or ")
      .replace("object", shape ?? "object"),
    format,
  ]
    .filter(Boolean)
    .join(", ");
}

function noteOf(schema: unknown): string {
  const { description, default: preset, minimum, maximum } = schemaShape.parse(schema ?? {});
  const range = minimum === undefined && maximum === undefined ? undefined : `${minimum ?? "…"} to ${maximum ?? "…"}`;
  return [description, range, preset === undefined ? undefined : `default ${JSON.stringify(preset)}`]
    .filter(part => part !== undefined)
    .join("; ");
}

const style = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
article { margin: 2rem 0; padding-top: 1rem; border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
h3 { margin: 0; } h4 { margin: 1rem 0 0.25rem; }
code { font: 0.9em ui-monospace, monospace; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
td:nth-child(2) { width: 30%; }
dl { display: grid; grid-template-columns: 4rem 1fr; margin: 0; } dd { margin: 0; }
`;
