// A server's screen, shown by noVNC. The ticket comes behind the `#` of the address, which is sent to nobody, and is good once.
import RFB from './novnc/core/rfb.js';

const word = document.getElementById('word');
const say = (text) => { word.textContent = text; };

const ticket = new URLSearchParams(location.hash.slice(1)).get('ticket');
history.replaceState(null, '', location.pathname);

if (!ticket) {
    say('There is no ticket in this address: make a new one with `fabric console url show SERVER`.');
} else {
    const url = new URL('vnc', location.href);
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
    url.searchParams.set('ticket', ticket);
    const rfb = new RFB(document.getElementById('screen'), url.href, { shared: true });
    rfb.scaleViewport = true;
    rfb.addEventListener('connect', () => { say('Connected.'); });
    rfb.addEventListener('desktopname', (event) => { document.title = event.detail.name; });
    rfb.addEventListener('disconnect', (event) => {
        say(event.detail.clean ? 'The console has ended.' : 'The console could not be opened, or was cut off: a ticket is good once.');
    });
}
