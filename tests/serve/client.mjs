// npm's openai at a server's address: node client.mjs URL KEY TEXT, in a folder that has the package
import OpenAI from "openai";

const [url, apiKey, content] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const said = { model: "tiny", messages: [{ role: "user", content }] };
const whole = await client.chat.completions.create(said);
let joined = "";
for await (const part of await client.chat.completions.create({ ...said, stream: true }))
  joined += part.choices[0]?.delta?.content ?? "";
let status = 0;
try {
  await client.chat.completions.create({ ...said, model: "gpt-4" });
} catch (error) {
  status = error.status;
}
console.log(JSON.stringify({ whole: whole.choices[0].message.content, joined, status }));
