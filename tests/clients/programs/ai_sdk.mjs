// The AI SDK with @ai-sdk/openai-compatible: prints the outcome of each case as JSON.
// The server's address, its key and a model come in BASE_URL, API_KEY and MODEL.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const { BASE_URL: url, API_KEY: key, MODEL: name } = process.env;
const make = (apiKey) => createOpenAICompatible({ name: "compared", baseURL: `${url}/v1`, apiKey, includeUsage: true });
const model = make(key)(name);
const short = { model, temperature: 0, maxOutputTokens: 8, maxRetries: 0 };
const prompt = "Say hello.";
const directed = 'aiaas-simulator: call weather {"city": "Graz"}\naiaas-simulator: say It rains.';
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = tool({
  description: "The weather",
  inputSchema: jsonSchema(parameters),
  execute: async ({ city }) => `rain in ${city}`,
});

const shown = (result) => ({
  text: result.text,
  reason: result.finishReason,
  usage: result.usage,
  steps: result.steps.map((step) => step.content.map(({ type, text, input, output }) => ({ type, text, input, output }))),
});

async function streamed(settings) {
  const parts = [];
  for await (const part of streamText({ onError: () => {}, ...settings }).fullStream) {
    const { type, text, delta, finishReason, totalUsage, error } = part;
    parts.push({ type, text, delta, finishReason, totalUsage, error: error && { status: error.statusCode ?? null } });
  }
  return parts;
}

const cases = {
  text: async () => shown(await generateText({ ...short, prompt })),
  "text streamed": () => streamed({ ...short, prompt }),
  "tool and answer": async () =>
    shown(await generateText({ ...short, prompt: directed, tools: { weather }, stopWhen: stepCountIs(3) })),
  "tool and answer streamed": () =>
    streamed({ ...short, prompt: directed, tools: { weather }, stopWhen: stepCountIs(3) }),
  "unknown model": async () => shown(await generateText({ ...short, model: make(key)("nope"), prompt })),
  "wrong key": async () => shown(await generateText({ ...short, model: make("sk-wrong")(name), prompt })),
  "wrong key streamed": () => streamed({ ...short, model: make("sk-wrong")(name), prompt }),
};

const found = {};
for (const [title, run] of Object.entries(cases)) {
  try {
    found[title] = await run();
  } catch (error) {
    found[title] = { raised: error.name, status: error.statusCode ?? null, retryable: error.isRetryable ?? null };
  }
}
process.stdout.write(JSON.stringify(found));
