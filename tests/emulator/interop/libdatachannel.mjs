import nodeDataChannel from 'node-datachannel';
import { turn } from './turn.mjs';

await turn(async (fetchAnswer, on) => {
  const peer = new nodeDataChannel.PeerConnection('client', { iceServers: [], disableAutoNegotiation: true });
  const audio = new nodeDataChannel.Audio('0', 'SendRecv');
  audio.addOpusCodec(111);
  const track = peer.addTrack(audio);
  const channel = peer.createDataChannel('oai-events');
  channel.onOpen(() => on.open((text) => channel.sendMessage(text)));
  channel.onMessage((data) => on.message(data));
  const gathered = new Promise((done) => peer.onGatheringStateChange((state) => state === 'complete' && done()));
  peer.setLocalDescription('offer');
  await gathered;
  peer.setRemoteDescription(await fetchAnswer(peer.localDescription().sdp), 'answer');
  return { close: () => peer.close(), track };
});
