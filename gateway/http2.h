/* HTTP/2 server as a pure machine over nghttp2 (RFC 9113), for ALPN "h2" and for prior knowledge.
 *
 * Windows are sized for uploads (1 MiB a stream, 4 MiB a connection). A peer that resets streams
 * faster than it lets us answer (rapid reset, CVE-2023-44487, also by making us reset them) is sent
 * away with ENHANCE_YOUR_CALM.
 *
 * Must not know: sockets, clocks. Thread: the owner's. */
#ifndef HEAVE_GATEWAY_HTTP2_H
#define HEAVE_GATEWAY_HTTP2_H

#include "gateway/http_machine.h"

/* The client's connection preface, RFC 9113 3.4: what tells prior knowledge from HTTP/1. */
#define HTTP2_PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define HTTP2_PREFACE_LEN 24

/* `host` must outlive the machine; free it with ops->free. Our SETTINGS are the first output.
 * NULL when memory is gone. */
struct http_machine *http2_new(const struct http_host *host);

#endif
