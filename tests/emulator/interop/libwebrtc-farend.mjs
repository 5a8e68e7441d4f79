import wrtc from '@roamhq/wrtc';
import { serve } from './farend.mjs';

serve(async (offer, events) => {
  const peer = new wrtc.RTCPeerConnection({});
  peer.ondatachannel = ({ channel }) => {
    channel.onmessage = ({ data }) => events.message(data);
    const opened = () => events.opened((text) => channel.send(text));
    if (channel.readyState === 'open') opened();
    else channel.onopen = opened;
  };
  await peer.setRemoteDescription({ type: 'offer', sdp: offer });
  await peer.setLocalDescription(await peer.createAnswer());
  if (peer.iceGatheringState !== 'complete') {
    await new Promise((done) => {
      peer.onicegatheringstatechange = () => peer.iceGatheringState === 'complete' && done();
    });
  }
  return { sdp: peer.localDescription.sdp, close: () => peer.close() };
});
