/* TLS contexts: loading certificates, verifying peers, ALPN. The only user of libssl.
 *
 * Must not know: sockets; base/stream drives the records. Thread: a context is immutable and
 * reference-counted once made; any thread may take references (design: TLS contexts are snapshots).
 *
 * It stands in base, not in gateway/, because accepted connections, the Redis connection and the
 * SMTP client all need it and the arrows between the rooms forbid the other places. */
#ifndef HEAVE_BASE_TLS_H
#define HEAVE_BASE_TLS_H

#include "gateway/base/buf.h"

#include <stdbool.h>

struct tls_context;

enum tls_version {
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    TLS_1_3,
};

struct tls_server_conf {
    const char *cert_file; /* PEM chain, leaf first */
    const char *key_file;  /* PEM */
    enum tls_version min_version;
    const char *client_ca_file; /* clients must show a certificate of it; NULL: none is asked for */
    bool offer_h2;              /* ALPN h2 and http/1.1; otherwise http/1.1 or none */
};

struct tls_client_conf {
    const char *ca_file;   /* NULL: the system's roots */
    const char *cert_file; /* client certificate, or NULL */
    const char *key_file;
    enum tls_version min_version;
    bool verify; /* false only for a peer whose configuration says `tls: optional` */
};

/* Errors: ERR_IO (file), ERR_INVAL (certificate, key, mismatch), with a sentence naming the file.
 * A private key readable by group or others is accepted with the sentence left to heave check. */
MUST_USE int tls_server_new(const struct tls_server_conf *conf, struct tls_context **out,
                            struct err *err);
MUST_USE int tls_client_new(const struct tls_client_conf *conf, struct tls_context **out,
                            struct err *err);
struct tls_context *tls_context_ref(struct tls_context *context);
void tls_context_unref(struct tls_context **context);

/* SHA-256 of `in` (fingerprints, cache keys). */
void tls_sha256(struct span in, unsigned char out[32]);

/* The engine of one connection, for base/stream alone: bytes from the wire in, plain bytes out, and
 * the other way round. Made by tls_engine_new; `host` (client side) is checked against the peer's
 * certificate and sent as SNI (not for address literals). */
struct tls_engine;
/* Errors: ERR_INVAL (no name a certificate could carry), ERR_NOMEM. */
MUST_USE int tls_engine_new(struct tls_context *context, const char *host, struct tls_engine **out);
void tls_engine_free(struct tls_engine **engine);
/* Feeds wire bytes. Errors: ERR_NOMEM. */
MUST_USE int tls_engine_feed(struct tls_engine *engine, struct span wire);
/* Advances the handshake. STEP_DONE, STEP_WAIT, or ERR_PROTO / ERR_DENIED (certificate) with a
 * sentence. */
MUST_USE int tls_engine_handshake(struct tls_engine *engine, struct err *err);
/* Reads plain bytes: the count (> 0), 0 when none are there, ERR_CLOSED after the peer's
 * close_notify, ERR_PROTO. */
MUST_USE int tls_engine_read(struct tls_engine *engine, char *room, size_t room_bytes);
/* Encrypts all of `plain`. Errors: ERR_PROTO, ERR_NOMEM. */
MUST_USE int tls_engine_write(struct tls_engine *engine, struct span plain);
/* Queues close_notify. */
void tls_engine_shutdown(struct tls_engine *engine);
/* Moves wire bytes waiting to be sent to the end of `out`. Errors: ERR_LIMIT, ERR_NOMEM. */
MUST_USE int tls_engine_drain(struct tls_engine *engine, struct buf *out);
/* "TLSv1.3", "TLS_AES_256_GCM_SHA384", "h2" (or ""): valid after the handshake. */
const char *tls_engine_version(const struct tls_engine *engine);
const char *tls_engine_cipher(const struct tls_engine *engine);
const char *tls_engine_alpn(const struct tls_engine *engine);
/* Server side: the subject of the client's verified certificate in RFC 2253 form; "" without one.
 */
const char *tls_engine_peer_subject(const struct tls_engine *engine);

#endif
