import nodeDataChannel from 'node-datachannel';
import { serve } from './farend.mjs';

serve(async (offer, events) => {
  const peer = new nodeDataChannel.PeerConnection('far end', { iceServers: [] });
  // Kept with the call: a channel or track that nobody holds is closed.
  const call = { close: () => peer.close(), held: [] };
  peer.onTrack((track) => call.held.push(track));
  peer.onDataChannel((channel) => {
    call.held.push(channel);
    channel.onMessage((data) => events.message(data));
    const opened = () => events.opened((text) => channel.sendMessage(text));
    if (channel.isOpen()) opened();
    else channel.onOpen(opened);
  });
  const gathered = new Promise((done) => peer.onGatheringStateChange((state) => state === 'complete' && done()));
  peer.setRemoteDescription(offer, 'offer');
  await gathered;
  call.sdp = peer.localDescription().sdp;
  return call;
});
