// The unmodified openai package against a gateway: `node conformance.mjs BASE_URL`. Prints a line per check; ends
// with 1 at the first that fails.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "hi" }];
const city = { type: "object", properties: { city: { enum: ["Oslo", "Rome"] } }, required: ["city"] };
const colour = {
  type: "object",
  properties: { colour: { enum: ["red", "blue"] } },
  required: ["colour"],
  additionalProperties: false,
};

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

async function refused(kind, promise) {
  const error = await promise.then(() => null, (reason) => reason);
  assert(error instanceof kind, `${kind.name} was expected, not ${error?.constructor?.name}: ${error}`);
  return error;
}

const checks = {
  async models() {
    assert.deepEqual((await client.models.list()).data.map((m) => m.id), ["m", "caller", "empty"]);
    assert.equal((await client.models.retrieve("m")).id, "m");
  },
  async chat() {
    const { data, request_id } = await client.chat.completions
      .create({ model: "m", messages, max_tokens: 4 })
      .withResponse();
    assert(data.choices[0].message.content);
    assert.equal(data.usage.completion_tokens, 4);
    assert.match(request_id, /^req_/);
  },
  async "chat, streamed"() {
    const asked = { model: "m", messages, max_tokens: 6, stream: true, stream_options: { include_usage: true } };
    const chunks = await all(await client.chat.completions.create(asked));
    assert(chunks.map((c) => c.choices[0]?.delta.content ?? "").join(""));
    assert.equal(chunks.at(-1).usage.completion_tokens, 6);
  },
  async tools() {
    const tools = [{ type: "function", function: { name: "weather", parameters: city } }];
    const asked = { model: "caller", messages, tools, tool_choice: "required", max_tokens: 400 };
    const [call] = (await client.chat.completions.create(asked)).choices[0].message.tool_calls;
    assert.equal(call.function.name, "weather");
    assert(["Oslo", "Rome"].includes(JSON.parse(call.function.arguments).city));
    const final = await client.chat.completions.stream(asked).finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.name, "weather");
  },
  async "JSON schema"() {
    const response_format = { type: "json_schema", json_schema: { name: "c", schema: colour, strict: true } };
    const answer = await client.chat.completions.create({ model: "m", messages, response_format });
    assert(["red", "blue"].includes(JSON.parse(answer.choices[0].message.content).colour));
  },
  async "logprobs and n"() {
    const asked = { model: "m", messages, logprobs: true, top_logprobs: 2, n: 3, max_tokens: 2, temperature: 0 };
    const { choices, usage } = await client.chat.completions.create(asked);
    assert.deepEqual(choices.map((c) => c.logprobs.content[0].top_logprobs.length), [2, 2, 2]);
    assert.equal(usage.completion_tokens, 6);
  },
  async completions() {
    const asked = { model: "m", prompt: "a b", max_tokens: 3, temperature: 0 };
    const answer = await client.completions.create({ ...asked, logprobs: 1 });
    assert.equal(answer.choices[0].logprobs.tokens.length, 3);
    const chunks = await all(await client.completions.create({ ...asked, stream: true }));
    assert(chunks.map((c) => c.choices[0].text).join(""));
  },
  async responses() {
    const first = await client.responses.create({ model: "m", input: "hi", max_output_tokens: 3 });
    assert.deepEqual(first.incomplete_details, { reason: "max_output_tokens" });
    assert.equal((await client.responses.retrieve(first.id)).output_text, first.output_text);
    const next = { model: "m", input: "and?", previous_response_id: first.id, max_output_tokens: 3 };
    const second = await client.responses.create(next);
    assert(second.usage.input_tokens > first.usage.input_tokens);
    assert.equal((await client.responses.inputItems.list(second.id)).data.length, 3);
    await client.responses.delete(first.id);
    await refused(OpenAI.NotFoundError, client.responses.retrieve(first.id));
  },
  async "responses, streamed"() {
    const text = { format: { type: "json_schema", name: "c", schema: colour, strict: true } };
    const stream = client.responses.stream({ model: "m", input: "hi", text });
    const kinds = (await all(stream)).map((event) => event.type);
    assert.equal(kinds[0], "response.created");
    assert.equal(kinds.at(-1), "response.completed");
    assert(["red", "blue"].includes(JSON.parse((await stream.finalResponse()).output_text).colour));
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model: "m", input: ["a cat", "a dog"] });
    assert.equal(answer.data.length, 2);
    const length = Math.hypot(...answer.data[0].embedding);
    assert(Math.abs(length - 1) < 1e-3, `length ${length}`);
  },
  async errors() {
    const chat = (more) => client.chat.completions.create({ model: "m", messages, ...more });
    assert.equal((await refused(OpenAI.NotFoundError, chat({ model: "nobody" }))).code, "model_not_found");
    assert.equal((await refused(OpenAI.BadRequestError, chat({ temperature: 9 }))).param, "temperature");
    assert.equal((await refused(OpenAI.BadRequestError, chat({ nonsense: 1 }))).code, "unknown_parameter");
    const long = [{ role: "user", content: "long ".repeat(5000) }];
    assert.equal((await refused(OpenAI.BadRequestError, chat({ messages: long }))).code, "context_length_exceeded");
    await refused(OpenAI.InternalServerError, chat({ model: "empty" }));
    await refused(OpenAI.BadRequestError, client.responses.create({ model: "m", input: "x", background: true }));
  },
  async "leaving a stream"() {
    const stream = await client.chat.completions.create({ model: "m", messages, max_tokens: 900, stream: true });
    for await (const chunk of stream) {
      assert(chunk.id);
      stream.controller.abort();
      break;
    }
    assert((await client.chat.completions.create({ model: "m", messages, max_tokens: 1 })).choices.length);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok ${name}`);
}
