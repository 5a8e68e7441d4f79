// The service's side of text turns, for a gateway to call: POST …/realtime/calls answers an offer, and each response on the
// channel repeats the user's message. With `--words N` it has N words instead, with a pause of `--gap` milliseconds after each;
// tests/load/beside.py measures with it. Each stack brings `answer(offer, channel)`, which returns {sdp, close};
// `channel.opened(send)` and `channel.message(text)` are what it reports.
import { createServer } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const options = { words: { type: 'string', default: '0' }, gap: { type: 'string', default: '0' } };
const { values: given } = parseArgs({ options });
const WORDS = Number(given.words), GAP_MS = Number(given.gap);
const STORY = Array.from({ length: WORDS }, (_, index) => `word${index} `).join('');

export function serve(answer) {
  const calls = new Map();
  let count = 0;
  const server = createServer(async (request, response) => {
    const [, name, what] = request.url.match(/\/realtime\/calls(?:\/(\w+)\/(hangup))?$/) ?? [];
    if (what) {
      calls.get(name)?.close();
      return response.writeHead(calls.delete(name) ? 200 : 404).end();
    }
    try {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      const [offer, session] = await read(Buffer.concat(chunks), request.headers);
      const id = `rtc_${++count}`;
      const call = await answer(offer, conversation(id, session));
      calls.set(id, call);
      response.writeHead(201, { 'Content-Type': 'text/plain', Location: `/v1/realtime/calls/${id}` }).end(call.sdp);
    } catch (error) {
      response.writeHead(500).end(JSON.stringify({ error: { message: String(error) } }));
    }
  });
  server.listen(0, '127.0.0.1', () => console.log(`listening on http://127.0.0.1:${server.address().port}/v1`));
  process.on('SIGTERM', () => process.exit(0));
}

// The body is a form with the session, or the offer alone.
async function read(body, headers) {
  if (headers['content-type'].startsWith('application/sdp')) return [body.toString(), {}];
  const form = await new Response(body, { headers }).formData();
  return [await text(form.get('sdp')), JSON.parse(await text(form.get('session')))];
}

const text = async (part) => (typeof part === 'string' ? part : await part.text());

function conversation(call, session) {
  const heard = [];
  let send, number = 0;
  const say = (type, members) => send(JSON.stringify({ type, event_id: `event_${++number}`, ...members }));
  return {
    opened(how) {
      send = how;
      say('session.created', { session: { ...session, object: 'realtime.session', id: `sess_${call}` } });
    },
    message(data) {
      // A call that is closed while it answers cannot send the rest.
      respond(JSON.parse(data)).catch((error) => console.error(`${call}: ${error}`));
    },
  };

  async function respond(event) {
    if (event.type === 'conversation.item.create') {
      const item = { id: `item_${number}`, status: 'completed', ...event.item };
      heard.push(item.content.map((part) => part.text).join(''));
      say('conversation.item.added', { previous_item_id: null, item });
      say('conversation.item.done', { previous_item_id: null, item });
    } else if (event.type === 'response.create') {
      const said = STORY || heard.at(-1);
      const response = {
        object: 'realtime.response', id: `resp_${number}`, status: 'in_progress', status_details: null, output: [],
        conversation_id: 'conv_1', output_modalities: ['text'], usage: null, metadata: event.response?.metadata ?? null,
      };
      const place = { response_id: response.id, item_id: 'item_said', output_index: 0, content_index: 0 };
      const content = [{ type: 'output_text', text: said }];
      const item = { id: 'item_said', type: 'message', status: 'completed', role: 'assistant', content };
      say('response.created', { response });
      for (const delta of said.match(/\S+\s*/gu)) {
        say('response.output_text.delta', { ...place, delta });
        if (GAP_MS) await pause(GAP_MS);
      }
      say('response.output_text.done', { ...place, text: said });
      say('response.done', { response: { ...response, status: 'completed', output: [item] } });
    }
  }
}
