#include "gateway/base/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

/* All fields but `refs` are written before the context is handed out, and only read from then on.
 */
struct tls_context {
    SSL_CTX *ssl;
    BIO_METHOD *wire; /* how engines move bytes between libssl and their buffers */
    bool server;
    bool verify;
    bool offer_h2;
    atomic_uint refs;
};

struct tls_engine {
    struct tls_context *context;
    SSL *ssl;
    char *host;     /* client: the name to verify; NULL otherwise */
    char *subject;  /* server: of the client's certificate; NULL otherwise */
    struct buf in;  /* from the wire, not yet read by libssl */
    struct buf out; /* written by libssl, not yet drained */
    bool failed;    /* libssl must not be asked to write any more */
};

/* What an engine holds between two calls is one flush of output or one read of input; the limits
 * only make a mistake of ours an error. */
#define WIRE_MAX_BYTES ((size_t)128 * 1024 * 1024)

/* ---- Error texts ---- */

/* The first cause in libssl's queue, which is emptied. */
static const char *ssl_reason(void)
{
    unsigned long code = ERR_peek_error();
    ERR_clear_error();
    if (ERR_SYSTEM_ERROR(code)) {
        return strerror(ERR_GET_REASON(code));
    }
    const char *reason = ERR_reason_error_string(code);
    return reason != NULL ? reason : "no reason given";
}

/* Whether the file can be read at all, so that a wrong path is told from wrong contents. */
static int check_readable(const char *what, const char *file, struct err *err)
{
    FILE *opened = fopen(file, "re");
    if (opened == NULL) {
        return err_set(err, ERR_IO, "The %s %s cannot be read: %s.", what, file, strerror(errno));
    }
    (void)fclose(opened); /* opened for reading: nothing can be lost */
    return ERR_OK;
}

/* ---- The wire: a BIO over the buffers of an engine ---- */

/* Not a memory BIO, because that one keeps its memory for the life of the connection, and idle
 * sessions shall hold no buffers. */

static int wire_read(BIO *bio, char *room, size_t size, size_t *out_count)
{
    struct tls_engine *engine = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    size_t have = buf_len(&engine->in);
    if (have == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    size_t count = have < size ? have : size;
    memcpy(room, engine->in.data + engine->in.start, count);
    buf_consume(&engine->in, count);
    if (buf_len(&engine->in) == 0) {
        buf_release(&engine->in);
    }
    *out_count = count;
    return 1;
}

static int wire_write(BIO *bio, const char *bytes, size_t size, size_t *out_count)
{
    struct tls_engine *engine = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (buf_append(&engine->out, span_make(bytes, size)) != ERR_OK) {
        return 0;
    }
    *out_count = size;
    return 1;
}

static long wire_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
}

static int wire_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

static BIO_METHOD *wire_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "heave wire");
    ASSERT(method != NULL);
    ASSERT(BIO_meth_set_read_ex(method, wire_read) == 1);
    ASSERT(BIO_meth_set_write_ex(method, wire_write) == 1);
    ASSERT(BIO_meth_set_ctrl(method, wire_control) == 1);
    ASSERT(BIO_meth_set_create(method, wire_create) == 1);
    return method;
}

/* ---- Contexts ---- */

/* An encrypted key would make libssl ask for its password on the terminal. */
static int no_password(char *room, int size, int writing, void *ctx)
{
    (void)room;
    (void)size;
    (void)writing;
    (void)ctx;
    return -1;
}

static int set_min_version(SSL_CTX *ssl, enum tls_version version)
{
    static const int versions[] = {
        [TLS_1_0] = TLS1_VERSION,
        [TLS_1_1] = TLS1_1_VERSION,
        [TLS_1_2] = TLS1_2_VERSION,
        [TLS_1_3] = TLS1_3_VERSION,
    };
    if (SSL_CTX_set_min_proto_version(ssl, versions[version]) != 1) {
        return ERR_INVAL;
    }
    /* TLS 1.0 and 1.1 sign with SHA-1, which OpenSSL 3 permits at security level 0 only. Who
     * configures them has devices that know nothing better; other contexts are not touched. */
    if (version < TLS_1_2 && SSL_CTX_set_cipher_list(ssl, "DEFAULT@SECLEVEL=0") != 1) {
        return ERR_INVAL;
    }
    return ERR_OK;
}

static struct tls_context *context_new(bool server)
{
    struct tls_context *context = mem_zero(sizeof(*context));
    atomic_init(&context->refs, 1);
    context->server = server;
    context->ssl = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    ASSERT(context->ssl != NULL);
    context->wire = wire_method();
    (void)SSL_CTX_set_options(context->ssl, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                                SSL_OP_CIPHER_SERVER_PREFERENCE);
    /* What is sent as chain is what the file holds, not what the trusted roots happen to complete.
     */
    (void)SSL_CTX_set_mode(context->ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
    /* Resumption is by tickets, which cost this side no memory. */
    (void)SSL_CTX_set_session_cache_mode(context->ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_default_passwd_cb(context->ssl, no_password);
    ERR_clear_error();
    return context;
}

static int load_identity(SSL_CTX *ssl, const char *cert_file, const char *key_file, struct err *err)
{
    if (key_file == NULL) {
        return err_set(err, ERR_INVAL, "The certificate file %s has no key file.", cert_file);
    }
    int rc = check_readable("certificate file", cert_file, err);
    if (rc == ERR_OK) {
        rc = check_readable("key file", key_file, err);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ssl, cert_file) != 1) {
        return err_set(err, ERR_INVAL, "The file %s holds no usable PEM certificate: %s.",
                       cert_file, ssl_reason());
    }
    if (SSL_CTX_use_PrivateKey_file(ssl, key_file, SSL_FILETYPE_PEM) != 1) {
        unsigned long code = ERR_peek_last_error();
        if (ERR_GET_LIB(code) == ERR_LIB_X509 &&
            ERR_GET_REASON(code) == X509_R_KEY_VALUES_MISMATCH) {
            ERR_clear_error();
            return err_set(err, ERR_INVAL,
                           "The key in %s does not belong to the certificate in %s.", key_file,
                           cert_file);
        }
        return err_set(err, ERR_INVAL, "The file %s holds no usable PEM key without password: %s.",
                       key_file, ssl_reason());
    }
    if (SSL_CTX_check_private_key(ssl) != 1) {
        ERR_clear_error();
        return err_set(err, ERR_INVAL, "The key in %s does not belong to the certificate in %s.",
                       key_file, cert_file);
    }
    return ERR_OK;
}

static int load_trust(SSL_CTX *ssl, const char *ca_file, struct err *err)
{
    int rc = check_readable("CA file", ca_file, err);
    if (rc != ERR_OK) {
        return rc;
    }
    ERR_clear_error();
    if (SSL_CTX_load_verify_file(ssl, ca_file) != 1) {
        return err_set(err, ERR_INVAL, "The file %s holds no usable PEM certificates: %s.", ca_file,
                       ssl_reason());
    }
    return ERR_OK;
}

/* ALPN, RFC 7301: h2 before http/1.1 when it is offered. A client that offers neither goes on
 * without, as clients of SMTP do. */
static int select_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                           const unsigned char *in, unsigned in_len, void *arg)
{
    (void)ssl;
    static const unsigned char both[] = "\x02h2\x08http/1.1";
    const struct tls_context *context = arg;
    const unsigned char *ours = context->offer_h2 ? both : both + 3;
    unsigned ours_len = (unsigned)sizeof(both) - 1 - (context->offer_h2 ? 0 : 3);
    unsigned char *chosen = NULL;
    if (SSL_select_next_proto(&chosen, out_len, ours, ours_len, in, in_len) !=
        OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_NOACK;
    }
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static int server_setup(struct tls_context *context, const struct tls_server_conf *conf,
                        struct err *err)
{
    static const unsigned char session_context[] = "heave";
    int rc = set_min_version(context->ssl, conf->min_version);
    if (rc != ERR_OK) {
        return err_set(err, rc, "The TLS library refuses the lowest version that is configured.");
    }
    rc = load_identity(context->ssl, conf->cert_file, conf->key_file, err);
    if (rc != ERR_OK) {
        return rc;
    }
    (void)SSL_CTX_set_dh_auto(context->ssl, 1);
    ASSERT(SSL_CTX_set_session_id_context(context->ssl, session_context,
                                          sizeof(session_context) - 1) == 1);
    SSL_CTX_set_alpn_select_cb(context->ssl, select_protocol, context);
    context->offer_h2 = conf->offer_h2;
    if (conf->client_ca_file == NULL) {
        return ERR_OK;
    }
    context->verify = true;
    SSL_CTX_set_verify(context->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    rc = load_trust(context->ssl, conf->client_ca_file, err);
    if (rc == ERR_OK) {
        SSL_CTX_set_client_CA_list(context->ssl, SSL_load_client_CA_file(conf->client_ca_file));
    }
    return rc;
}

int tls_server_new(const struct tls_server_conf *conf, struct tls_context **out, struct err *err)
{
    struct tls_context *context = context_new(true);
    int rc = server_setup(context, conf, err);
    if (rc != ERR_OK) {
        tls_context_unref(&context);
        return rc;
    }
    *out = context;
    return ERR_OK;
}

static int client_setup(struct tls_context *context, const struct tls_client_conf *conf,
                        struct err *err)
{
    int rc = set_min_version(context->ssl, conf->min_version);
    if (rc != ERR_OK) {
        return err_set(err, rc, "The TLS library refuses the lowest version that is configured.");
    }
    context->verify = conf->verify;
    SSL_CTX_set_verify(context->ssl, conf->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
    if (conf->ca_file != NULL) {
        rc = load_trust(context->ssl, conf->ca_file, err);
    } else if (SSL_CTX_set_default_verify_paths(context->ssl) != 1) {
        rc = err_set(err, ERR_IO, "The system's root certificates cannot be read: %s.",
                     ssl_reason());
    }
    if (rc == ERR_OK && conf->cert_file != NULL) {
        rc = load_identity(context->ssl, conf->cert_file, conf->key_file, err);
    }
    return rc;
}

int tls_client_new(const struct tls_client_conf *conf, struct tls_context **out, struct err *err)
{
    struct tls_context *context = context_new(false);
    int rc = client_setup(context, conf, err);
    if (rc != ERR_OK) {
        tls_context_unref(&context);
        return rc;
    }
    *out = context;
    return ERR_OK;
}

struct tls_context *tls_context_ref(struct tls_context *context)
{
    (void)atomic_fetch_add_explicit(&context->refs, 1, memory_order_relaxed);
    return context;
}

void tls_context_unref(struct tls_context **context_ptr)
{
    struct tls_context *context = *context_ptr;
    *context_ptr = NULL;
    if (context == NULL ||
        atomic_fetch_sub_explicit(&context->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    SSL_CTX_free(context->ssl);
    BIO_meth_free(context->wire);
    mem_free(context);
}

void tls_sha256(struct span in, unsigned char out[32])
{
    static_assert(SHA256_DIGEST_LENGTH == 32, "the size the header promises");
    (void)SHA256((const unsigned char *)in.data, in.len, out);
}

/* ---- Engines ---- */

/* A name as certificates carry it: without the dot that marks it as absolute. */
static char *certificate_name(const char *host)
{
    struct span name = span_of(host);
    if (name.len > 1 && name.data[name.len - 1] == '.') {
        name.len--;
    }
    return mem_dup(name);
}

static int client_names(struct tls_engine *engine)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(engine->ssl);
    bool address = X509_VERIFY_PARAM_set1_ip_asc(param, engine->host) == 1;
    ERR_clear_error();
    if (address) {
        return ERR_OK;
    }
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (engine->host[0] == '\0' || X509_VERIFY_PARAM_set1_host(param, engine->host, 0) != 1 ||
        SSL_set_tlsext_host_name(engine->ssl, engine->host) != 1) {
        ERR_clear_error();
        return ERR_INVAL;
    }
    return ERR_OK;
}

/* Fills a zeroed engine; what was made on failure is freed by tls_engine_free. */
static int engine_init(struct tls_engine *engine, const char *host)
{
    struct tls_context *context = engine->context;
    buf_init(&engine->in, WIRE_MAX_BYTES);
    buf_init(&engine->out, WIRE_MAX_BYTES);
    engine->ssl = SSL_new(context->ssl);
    BIO *bio = engine->ssl != NULL ? BIO_new(context->wire) : NULL;
    if (bio == NULL) {
        ERR_clear_error();
        return ERR_NOMEM;
    }
    BIO_set_data(bio, engine);
    SSL_set_bio(engine->ssl, bio, bio);
    if (context->server) {
        SSL_set_accept_state(engine->ssl);
        return ERR_OK;
    }
    SSL_set_connect_state(engine->ssl);
    if (host == NULL) {
        return context->verify ? ERR_INVAL : ERR_OK;
    }
    engine->host = certificate_name(host);
    int rc = client_names(engine);
    /* A name no certificate could carry does not matter where none is verified. */
    return context->verify ? rc : ERR_OK;
}

int tls_engine_new(struct tls_context *context, const char *host, struct tls_engine **out)
{
    struct tls_engine *engine = mem_zero(sizeof(*engine));
    engine->context = tls_context_ref(context);
    int rc = engine_init(engine, host);
    if (rc != ERR_OK) {
        tls_engine_free(&engine);
        return rc;
    }
    *out = engine;
    return ERR_OK;
}

void tls_engine_free(struct tls_engine **engine_ptr)
{
    struct tls_engine *engine = *engine_ptr;
    if (engine == NULL) {
        return;
    }
    SSL_free(engine->ssl);
    buf_release(&engine->in);
    buf_release(&engine->out);
    mem_free(engine->host);
    mem_free(engine->subject);
    tls_context_unref(&engine->context);
    mem_free(engine);
    *engine_ptr = NULL;
}

int tls_engine_feed(struct tls_engine *engine, struct span wire)
{
    return buf_append(&engine->in, wire) == ERR_OK ? ERR_OK : ERR_NOMEM;
}

static int handshake_failed(struct tls_engine *engine, struct err *err)
{
    engine->failed = true;
    long verdict = SSL_get_verify_result(engine->ssl);
    if (!engine->context->verify || verdict == X509_V_OK) {
        return err_set(err, ERR_PROTO, "The TLS handshake failed: %s.", ssl_reason());
    }
    ERR_clear_error();
    const char *owner = engine->host != NULL ? engine->host : "the client";
    if (verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH) {
        return err_set(err, ERR_DENIED, "The certificate of %s was issued for another name.",
                       owner);
    }
    return err_set(err, ERR_DENIED, "The certificate of %s is not trusted: %s.", owner,
                   X509_verify_cert_error_string(verdict));
}

/* The subject as one line of text. */
static char *read_subject(const X509 *certificate)
{
    BIO *memory = BIO_new(BIO_s_mem());
    ASSERT(memory != NULL);
    char *text = NULL;
    if (X509_NAME_print_ex(memory, X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253) >= 0) {
        char *data = NULL;
        long len = BIO_get_mem_data(memory, &data);
        text = mem_dup(span_make(data, len > 0 ? (size_t)len : 0));
    }
    (void)BIO_free(memory);
    return text;
}

int tls_engine_handshake(struct tls_engine *engine, struct err *err)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(engine->ssl);
    if (rc != 1) {
        if (SSL_get_error(engine->ssl, rc) == SSL_ERROR_WANT_READ) {
            return STEP_WAIT;
        }
        return handshake_failed(engine, err);
    }
    const X509 *certificate = SSL_get0_peer_certificate(engine->ssl);
    if (engine->context->server && certificate != NULL && engine->subject == NULL) {
        engine->subject = read_subject(certificate);
    }
    return STEP_DONE;
}

int tls_engine_read(struct tls_engine *engine, char *room, size_t room_bytes)
{
    ERR_clear_error();
    size_t count = 0;
    /* The result is an int, so one call reads no more than fits into it. */
    size_t most = room_bytes < (size_t)1 << 30 ? room_bytes : (size_t)1 << 30;
    int rc = SSL_read_ex(engine->ssl, room, most, &count);
    if (rc == 1) {
        return (int)count;
    }
    int cause = SSL_get_error(engine->ssl, rc);
    if (cause == SSL_ERROR_WANT_READ) {
        return 0;
    }
    if (cause == SSL_ERROR_ZERO_RETURN) {
        return ERR_CLOSED;
    }
    engine->failed = true;
    ERR_clear_error();
    return ERR_PROTO;
}

int tls_engine_write(struct tls_engine *engine, struct span plain)
{
    if (engine->failed) {
        return ERR_PROTO;
    }
    /* Room for all records at once: 16 KiB of text each, and at most 256 bytes around it. */
    char *room = NULL;
    size_t overhead = (plain.len / SSL3_RT_MAX_PLAIN_LENGTH + 1) * 256;
    if (buf_reserve(&engine->out, plain.len + overhead, &room) != ERR_OK) {
        return ERR_NOMEM;
    }
    ERR_clear_error();
    size_t written = 0;
    if (plain.len > 0 && SSL_write_ex(engine->ssl, plain.data, plain.len, &written) != 1) {
        engine->failed = true;
        ERR_clear_error();
        return ERR_PROTO;
    }
    ASSERT(written == plain.len);
    return ERR_OK;
}

void tls_engine_shutdown(struct tls_engine *engine)
{
    if (engine->failed || SSL_in_init(engine->ssl) != 0) {
        return;
    }
    ERR_clear_error();
    (void)SSL_shutdown(
        engine->ssl); /* 0: the peer's close_notify, which nobody waits for, is out */
    ERR_clear_error();
}

int tls_engine_drain(struct tls_engine *engine, struct buf *out)
{
    struct buf *wire = &engine->out;
    int rc = ERR_OK;
    if (buf_len(out) == 0 && buf_len(wire) <= out->max && !out->secret) {
        /* The usual case: the memory changes hands instead of being copied. */
        size_t max_bytes = out->max;
        buf_release(out);
        *out = *wire;
        out->max = max_bytes;
        buf_init(wire, WIRE_MAX_BYTES);
        return ERR_OK;
    }
    rc = buf_append(out, buf_span(wire));
    if (rc == ERR_OK) {
        buf_release(wire);
    }
    return rc;
}

const char *tls_engine_version(const struct tls_engine *engine)
{
    return SSL_get_version(engine->ssl);
}

const char *tls_engine_cipher(const struct tls_engine *engine)
{
    const char *name = SSL_get_cipher_name(engine->ssl);
    return name != NULL ? name : "";
}

const char *tls_engine_alpn(const struct tls_engine *engine)
{
    const unsigned char *name = NULL;
    unsigned len = 0;
    SSL_get0_alpn_selected(engine->ssl, &name, &len);
    struct span chosen = span_make((const char *)name, len);
    if (span_eq(chosen, SPAN_LIT("h2"))) {
        return "h2";
    }
    return span_eq(chosen, SPAN_LIT("http/1.1")) ? "http/1.1" : "";
}

const char *tls_engine_peer_subject(const struct tls_engine *engine)
{
    return engine->subject != NULL ? engine->subject : "";
}
