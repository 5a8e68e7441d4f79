import wrtc from '@roamhq/wrtc';
import { turn } from './turn.mjs';

await turn(async (fetchAnswer, on) => {
  const peer = new wrtc.RTCPeerConnection({});
  peer.addTransceiver('audio');
  const channel = peer.createDataChannel('oai-events');
  channel.onopen = () => on.open((text) => channel.send(text));
  channel.onmessage = (event) => on.message(event.data);
  await peer.setLocalDescription(await peer.createOffer());
  if (peer.iceGatheringState !== 'complete') {
    await new Promise((done) => {
      peer.onicegatheringstatechange = () => peer.iceGatheringState === 'complete' && done();
    });
  }
  await peer.setRemoteDescription({ type: 'answer', sdp: await fetchAnswer(peer.localDescription.sdp) });
  return { close: () => peer.close() };
});
