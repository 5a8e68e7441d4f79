// Holds one turn with the emulator: post the offer, take the answer, speak, print what came as one JSON object.
// Each stack brings `connect(fetchAnswer)`, which gives {send, onMessage, onOpen, close}.

export async function turn(connect) {
  const [base, text] = process.argv.slice(2);
  const headers = { Authorization: 'Bearer sk-test' };
  const fetchAnswer = async (sdp) => {
    const form = new FormData();
    form.set('sdp', sdp);
    form.set('session', JSON.stringify({ type: 'realtime', model: 'gpt-realtime', output_modalities: ['text'] }));
    const response = await fetch(`${base}/realtime/calls`, { method: 'POST', headers, body: form });
    if (response.status !== 201) throw new Error(`${response.status} ${await response.text()}`);
    return await response.text();
  };
  const types = [];
  const deadline = setTimeout(() => finish({ error: 'deadline', types }, 1), 20000);
  let channel;
  const finish = (what, status = 0) => {
    clearTimeout(deadline);
    console.log(JSON.stringify(what));
    channel?.close();
    setTimeout(() => process.exit(status), 50);
  };
  channel = await connect(fetchAnswer, {
    open(send) {
      const content = [{ type: 'input_text', text }];
      send(JSON.stringify({ type: 'conversation.item.create', item: { type: 'message', role: 'user', content } }));
      send(JSON.stringify({ type: 'response.create' }));
    },
    message(data) {
      const event = JSON.parse(data);
      types.push(event.type);
      if (event.type === 'response.done') finish({ text: event.response.output[0].content[0].text, types });
    },
  });
}
