// The official SDKs for Node, openai and @anthropic-ai/sdk: prints the outcome of each case as JSON.
// The server's address, its key and a model come in BASE_URL, API_KEY and MODEL.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const { BASE_URL: url, API_KEY: key, MODEL: model } = process.env;
const messages = [{ role: "user", content: "Say hello." }];
const call = [{ role: "user", content: 'aiaas-simulator: call weather {"city": "Graz"}' }];
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const fn = { name: "weather", description: "The weather", parameters: schema };
const tools = [{ type: "function", function: fn }];
const short = { model, temperature: 0, max_tokens: 8 };
const brief = { model, temperature: 0, max_output_tokens: 8 };

const sdk = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 60_000 });
const wrong = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-wrong", maxRetries: 0, timeout: 60_000 });
const claude = new Anthropic({ baseURL: url, authToken: key, apiKey: null, maxRetries: 0, timeout: 60_000 });

async function all(stream) {
  const found = [];
  for await (const event of await stream) found.push(event);
  return found;
}

const cases = {
  chat: () => sdk.chat.completions.create({ ...short, messages }),
  "chat streamed": () => all(sdk.chat.completions.create({ ...short, messages, stream: true })),
  "chat streamed with usage": () =>
    all(sdk.chat.completions.create({ ...short, messages, stream: true, stream_options: { include_usage: true } })),
  "chat with a tool": () => sdk.chat.completions.create({ ...short, messages: call, tools }),
  "chat stream put together": () => sdk.chat.completions.stream({ ...short, messages: call, tools }).finalMessage(),
  completion: () => sdk.completions.create({ ...short, prompt: "def main(" }),
  "completion streamed": () => all(sdk.completions.create({ ...short, prompt: "def main(", stream: true })),
  response: () => sdk.responses.create({ ...brief, input: "Say hello." }),
  "response streamed": () => all(sdk.responses.create({ ...brief, input: "Say hello.", stream: true })),
  "response with a tool": () =>
    sdk.responses.create({ ...brief, input: call[0].content, tools: [{ type: "function", ...fn, strict: false }] }),
  models: async () => (await sdk.models.list()).data.map((each) => each.id),
  "unknown model": () => sdk.chat.completions.create({ ...short, model: "nope", messages }),
  "temperature out of bounds": () => sdk.chat.completions.create({ ...short, temperature: 9, messages }),
  "wrong key": () => wrong.chat.completions.create({ ...short, messages }),
  message: () => claude.messages.create({ ...short, messages }),
  "message streamed": () => all(claude.messages.create({ ...short, messages, stream: true })),
  "message stream put together": () => claude.messages.stream({ ...short, messages }).finalMessage(),
  "message with a tool": () =>
    claude.messages.create({ ...short, messages: call, tools: [{ name: "weather", input_schema: schema }] }),
  "message: tokens counted": () => claude.messages.countTokens({ model, messages }),
  "message: unknown model": () => claude.messages.create({ ...short, model: "nope", messages }),
};

const found = {};
for (const [name, run] of Object.entries(cases)) {
  try {
    found[name] = await run();
  } catch (error) {
    found[name] = { raised: error.constructor.name, status: error.status ?? null, body: error.error ?? error.message };
  }
}
process.stdout.write(JSON.stringify(found));
