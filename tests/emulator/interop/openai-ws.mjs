// The official JavaScript client over a WebSocket: a text turn and a function call, then the same on a sideband of a call
// where one is named. Prints what came as one JSON object.
import net from 'node:net';
import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

const [baseURL, callID] = process.argv.slice(2);
const client = new OpenAI({ apiKey: 'sk-test', baseURL });
const tools = [
  {
    type: 'function',
    name: 'get_weather',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
];
const session = { type: 'realtime', output_modalities: ['text'], tools };
const say = (text) => ({ type: 'message', role: 'user', content: [{ type: 'input_text', text }] });

// The package speaks wss:// to whatever base URL it is given; the emulator has no certificate, so its TCP connection is used.
const options = { createConnection: ({ host, port }) => net.connect(port, host) };
const socket = new OpenAIRealtimeWS({ ...(callID ? { callID } : { model: 'gpt-realtime' }), options }, client);
const types = [];
const done = [];
const deadline = setTimeout(() => finish({ error: 'deadline', types }, 1), 20000);
function finish(what, status = 0) {
  clearTimeout(deadline);
  console.log(JSON.stringify(what));
  socket.close();
  setTimeout(() => process.exit(status), 50);
}
const ask = (item) => {
  socket.send({ type: 'conversation.item.create', item });
  socket.send({ type: 'response.create' });
};
socket.on('error', (error) => finish({ error: String(error), types }, 1));
socket.on('event', (event) => types.push(event.type));
socket.socket.on('open', () => {
  socket.send({ type: 'session.update', session });
  ask(say('Repeat after me: hello'));
});
socket.on('response.done', ({ response }) => {
  const [first] = response.output;
  done.push(first.type === 'message' ? first.content[0].text : JSON.parse(first.arguments));
  if (done.length === 1) ask(say('What is the weather in Oslo?'));
  else if (done.length === 2) ask({ type: 'function_call_output', call_id: first.call_id, output: '{"sky":"clear"}' });
  else finish({ done, types });
});
