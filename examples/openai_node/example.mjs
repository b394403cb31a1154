// Talks to Baton with OpenAI's client for Node: npm ci, start `baton serve`, node example.mjs.

import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.env.BATON_URL ?? "http://127.0.0.1:8000";
// Until there are keys, any key will do; the client insists on one.
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const question = [{ role: "user", content: "Name a colour and a number below ten." }];
const settings = { model, temperature: 0 };

// A stream.
const stream = await client.chat.completions.create({
  ...settings, messages: question, max_tokens: 24, stream: true,
});
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log("said:", JSON.stringify(text));

// An answer that fits a schema, by both ways to ask.
const Pick = z.object({ colour: z.enum(["red", "green", "blue"]), number: z.number().int().min(0).max(9) });
const format = zodResponseFormat(Pick, "pick");
const chat = await client.chat.completions.parse({
  ...settings, messages: question, max_tokens: 60, response_format: format,
});
console.log("picked:", Pick.parse(chat.choices[0].message.parsed));
const response = await client.responses.parse({
  ...settings, input: question, max_output_tokens: 60, text: { format: zodTextFormat(Pick, "pick") },
});
console.log("responded:", Pick.parse(response.output_parsed));

// A tool is called, and its result told. A larger model may choose for itself.
const tool = {
  type: "function",
  function: {
    name: "double",
    parameters: z.toJSONSchema(z.object({ number: z.number().int().min(0).max(9) })),
    parse: (text) => z.object({ number: z.number() }).parse(JSON.parse(text)),
    function: ({ number }) => String(2 * number),
  },
};
const runner = client.chat.completions.runTools({
  ...settings, messages: question, max_tokens: 60, tools: [tool],
  tool_choice: { type: "function", function: { name: "double" } },
});
await runner.done();
console.log("doubled:", await runner.finalFunctionToolCallResult());

// The events of a response, and one that goes on from it.
const events = client.responses.stream({ ...settings, input: question, max_output_tokens: 24 });
let pieces = 0;
let last;
for await (const event of events) {
  pieces += event.type === "response.output_text.delta";
  last = event.response ?? last;
}
const more = await client.responses.create({
  ...settings, input: "And another.", previous_response_id: last.id, max_output_tokens: 24,
});
console.log("pieces:", pieces, "and then:", JSON.stringify(more.output_text));
await client.responses.delete(last.id);

// Embeddings: of two texts that say much the same, and one that does not.
const texts = ["The cat sleeps on the mat.", "A cat is asleep on a mat.", "Interest rates went up by a point."];
const vectors = (await client.embeddings.create({ model, input: texts })).data.map((made) => made.embedding);
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
console.log("alike:", dot(vectors[0], vectors[1]).toFixed(3), "and not:", dot(vectors[0], vectors[2]).toFixed(3));

// Calls that have time, as a file of lines.
const lines = [1, 2, 3].map((number) => JSON.stringify({
  custom_id: `call-${number}`, method: "POST", url: "/v1/chat/completions",
  body: { ...settings, messages: [{ role: "user", content: `Say ${number}.` }], max_tokens: 8 },
}));
const calls = await client.files.create({
  file: await toFile(Buffer.from(lines.join("\n")), "calls.jsonl"), purpose: "batch",
});
let batch = await client.batches.create({
  input_file_id: calls.id, endpoint: "/v1/chat/completions", completion_window: "24h",
});
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
const written = await (await client.files.content(batch.output_file_id)).text();
console.log("batch:", batch.status, written.trim().split("\n").length, "answers");
for (const file of [calls.id, batch.output_file_id]) await client.files.delete(file);

// A call that takes too long is given up and made again, by the client itself. With a key it is computed once.
let tries = 0;
const hasty = client.withOptions({
  timeout: 100, maxRetries: 8,
  fetch: (url, init) => { tries += 1; return fetch(url, init); },
});
const late = await hasty.chat.completions.create(
  { ...settings, messages: question, max_tokens: 100, ignore_eos: true },
  { headers: { "Idempotency-Key": crypto.randomUUID() } },
);
console.log("tries:", tries, "for", late.usage.completion_tokens, "tokens");
