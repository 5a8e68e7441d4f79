// The official agents' client over a WebSocket in Node: it speaks, and calls a tool of its own. Prints the history's texts.
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { z } from 'zod';

const [base] = process.argv.slice(2);
const called = [];
const weather = tool({
  name: 'get_weather',
  description: 'Look up the weather for a city.',
  parameters: z.object({ city: z.string() }),
  execute: async (given) => {
    called.push(given);
    return '{"sky":"clear"}';
  },
});
const agent = new RealtimeAgent({ name: 'Clerk', instructions: 'Be brief.', tools: [weather] });
const url = `${base.replace('http', 'ws')}/realtime?model=gpt-realtime`;
const transport = new OpenAIRealtimeWebSocket({ url });
const session = new RealtimeSession(agent, { transport, model: 'gpt-realtime', config: { outputModalities: ['text'] } });
const types = [];
const said = [];
const deadline = setTimeout(() => finish({ error: 'deadline', types }, 1), 20000);
function finish(what, status = 0) {
  clearTimeout(deadline);
  console.log(JSON.stringify(what));
  session.close();
  setTimeout(() => process.exit(status), 50);
}
session.on('error', (error) => finish({ error: JSON.stringify(error), types }, 1));
transport.on('*', (event) => {
  types.push(event.type);
  if (event.type !== 'response.done') return;
  const message = event.response.output.find((item) => item.type === 'message');
  if (!message) return;
  said.push(message.content[0].text);
  if (said.length === 1) session.sendMessage('What is the weather in Oslo?');
  else finish({ said, called, types });
});
await session.connect({ apiKey: 'sk-test' });
session.sendMessage('Repeat after me: hello');
