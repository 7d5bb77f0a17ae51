/* HTTP/1.1 and 1.0 server as a pure machine over llhttp (RFC 9110, RFC 9112).
 *
 * One request at a time: the next pipelined request is parsed when the one before is answered, so
 * answers keep their order and a peer makes us hold one request and one unread buffer. The head is
 * taken line by line, CR LF only; what is in doubt (both Content-Length and Transfer-Encoding,
 * folded lines, bare CR or LF, two Host fields) is refused with 400 and the connection ends (RFC
 * 9112 11.2, request smuggling).
 *
 * Must not know: sockets, clocks. Thread: the owner's. */
#ifndef HEAVE_GATEWAY_HTTP1_H
#define HEAVE_GATEWAY_HTTP1_H

#include "gateway/http_machine.h"

/* `host` must outlive the machine; free it with ops->free. */
struct http_machine *http1_new(const struct http_host *host);

#endif
