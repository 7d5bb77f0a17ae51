/* One byte stream: TCP or Unix socket, plain or TLS, accepted or connected, with deadlines and
 * back-pressure. Deep on purpose: users see bytes, never sockets, records or handles.
 *
 * Must not know: any protocol. Thread: the loop's. Used by listeners (accepted), the Redis
 * connection and the SMTP client (connected).
 *
 * States: CONNECTING -> (TLS ->) OPEN -> CLOSING -> closed. stream_connect starts in CONNECTING,
 * stream_accept in OPEN (or TLS); on_open makes it OPEN; stream_close / stream_abort / an error /
 * end of file make it CLOSING; on_close is the last callback.
 *
 * Reading: on_data gets all bytes not yet consumed. What it does not consume is kept and shown
 * again with the next bytes; when everything is consumed the stream holds no read buffer. When
 * `max_unread_bytes` are kept and none is consumed, the stream stops reading until stream_resume.
 *
 * Writing: bytes are copied, collected, and leave in one system call at the end of the loop's turn
 * (LOOP_TASK_WRITE); what the socket does not take is kept. Above `high_water_bytes` pending the
 * user should stop producing until on_drain; the hard limit is `max_pending_bytes` (stream_write
 * then fails). */
#ifndef HEAVE_BASE_STREAM_H
#define HEAVE_BASE_STREAM_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"
#include "gateway/base/tls.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stream;

/* The callbacks of a stream's user. All run on the loop's thread. Any of them may call
 * stream_close() or stream_abort(), also twice. After on_close `ctx` is never touched again and the
 * stream is gone; drop the pointer there. No callback runs inside a call the user makes. */
struct stream_ops {
    /* Connected and, with TLS from the start, the handshake is done. Also called after
     * stream_start_tls() completed. */
    void (*on_open)(void *ctx);
    /* Returns how many bytes of `bytes` it has used (0 .. len). */
    size_t (*on_data)(void *ctx, struct span bytes);
    /* Pending output fell below a quarter of high water after having been above high water. May be
     * NULL. */
    void (*on_drain)(void *ctx);
    /* The deadline set with stream_deadline() passed. The stream stays open: answer and close, or
     * set a new one. NULL: the stream is closed with ERR_TIMEOUT. */
    void (*on_deadline)(void *ctx);
    /* The end, exactly once. 0: closed by us; ERR_CLOSED: end of file from the peer; ERR_TIMEOUT,
     * ERR_IO, ERR_PROTO (TLS), ERR_DENIED (the peer's certificate). `why` is a sentence for logs.
     */
    void (*on_close)(void *ctx, int status, const char *why);
};

struct stream_limits {
    size_t max_unread_bytes;  /* 0: 64 KiB */
    size_t high_water_bytes;  /* 0: 256 KiB */
    size_t max_pending_bytes; /* 0: 64 MiB */
    bool writes_first;        /* output leaves in LOOP_TASK_QUEUE: before that of other streams */
};

/* Takes an accepted socket (the uv_stream_t of a listening handle that has a connection waiting).
 * `tls`: NULL for plain, else the handshake starts at once (a reference is taken). on_open follows.
 * Errors: ERR_IO; no callback runs then. */
MUST_USE int stream_accept(struct loop *loop, uv_stream_t *listener, struct tls_context *tls,
                           const struct stream_ops *ops, void *ctx,
                           const struct stream_limits *limits, struct stream **out);

struct stream_target {
    const char *host; /* name, address, or absolute path of a Unix socket when port is 0 */
    uint16_t port;
    struct tls_context *tls;    /* TLS from the first byte; NULL: plain */
    const char *tls_host;       /* name to verify; NULL: host */
    int64_t connect_timeout_ms; /* name look-up, every address in turn, and TLS together; 0: 30 s */
};
/* Starts connecting; the outcome is on_open or on_close. Everything in `target` is copied (tls: a
 * reference). Errors: ERR_INVAL; no callback runs then. */
MUST_USE int stream_connect(struct loop *loop, const struct stream_target *target,
                            const struct stream_ops *ops, void *ctx,
                            const struct stream_limits *limits, struct stream **out);

/* Hands the stream to another user (a protocol change), who is shown the bytes the old one kept. */
void stream_set_user(struct stream *stream, const struct stream_ops *ops, void *ctx);

/* Appends to the output. Errors: ERR_LIMIT (max_pending_bytes), ERR_NOMEM, ERR_CLOSED (closing). */
MUST_USE int stream_write(struct stream *stream, struct span bytes);
/* The same without a copy: the stream takes the memory of `bytes`, and leaves it empty. For large
 * pieces; on an error `bytes` stays as it is. Not before stream_start_tls() on the same stream. */
MUST_USE int stream_give(struct stream *stream, struct buf *bytes);
size_t stream_pending_bytes(const struct stream *stream);
/* From passing high water until on_drain is due. */
bool stream_above_high_water(const struct stream *stream);

/* Stops on_data; bytes stay in the kernel. stream_resume shows kept bytes again, later in this
 * turn. */
void stream_pause(struct stream *stream);
void stream_resume(struct stream *stream);

/* Switches an OPEN plain stream to TLS after flushing what is pending; unread plain bytes are
 * thrown away (RFC 3207 4.2; CVE-2011-0411). on_open follows. `host`: see tls_engine_new; NULL for
 * a server. Errors: ERR_NOMEM, ERR_INVAL (`host`), ERR_CLOSED (not OPEN any more). */
MUST_USE int stream_start_tls(struct stream *stream, struct tls_context *tls, const char *host);

/* One deadline, replaced by each call; 0 takes it away. */
void stream_deadline(struct stream *stream, int64_t delay_ms);

/* Ends after pending output has left (at most 5 s). on_data does not run any more. A peer that was
 * just sending is listened to for at most 1 s more, its bytes thrown away, until it closes too,
 * because a reset could take our last answer from it; so on_close may come that much later. */
void stream_close(struct stream *stream);
/* Ends at once, pending output is dropped. */
void stream_abort(struct stream *stream);

/* "192.0.2.1:4711", "[2001:db8::1]:25", "unix"; and the bare address without port. */
const char *stream_peer(const struct stream *stream);
const char *stream_peer_address(const struct stream *stream);
bool stream_is_tls(const struct stream *stream);
/* As the tls_engine_* of the same name; "" on a plain stream. */
const char *stream_tls_version(const struct stream *stream);
const char *stream_tls_cipher(const struct stream *stream);
const char *stream_alpn(const struct stream *stream);
const char *stream_tls_peer_subject(const struct stream *stream);

#endif
