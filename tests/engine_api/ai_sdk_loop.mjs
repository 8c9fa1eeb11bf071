// A tool loop and a parsed answer by the Vercel AI SDK: `node ai_sdk_loop.mjs BASE_URL PROMPT`, JSON on stdout.

import { createOpenAI } from "@ai-sdk/openai";
import { Output, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [baseURL, prompt] = process.argv.slice(2);
const model = createOpenAI({ baseURL, apiKey: "none" }).responses("policy_model");

const object = (properties) =>
  jsonSchema({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });

const get_weather = tool({
  description: "The weather in a city",
  inputSchema: object({ city: { type: "string" } }),
  execute: async ({ city }) => `18 degrees in ${city}`,
});
const loop = { model, prompt, tools: { get_weather }, stopWhen: stepCountIs(3), maxRetries: 0 };

const whole = await generateText(loop);
const streamed = streamText(loop);
const pieces = [];
for await (const piece of streamed.textStream) pieces.push(piece);
const parsed = await generateText({
  model,
  prompt: 'ECHO:{"name":"Oslo","size":7}',
  output: Output.object({ schema: object({ name: { type: "string" }, size: { type: "integer" } }) }),
  maxRetries: 0,
});

console.log(
  JSON.stringify({
    whole: whole.text,
    steps: whole.steps.length,
    usage: whole.totalUsage,
    pieces,
    streamedSteps: (await streamed.steps).length,
    parsed: parsed.output,
  }),
);
