/* A scripted HTTPS/1.1 server in the process of a unit test: for every request the test's function
 * says what becomes of it. Over base/stream, with a certificate for 127.0.0.1 made on the spot. One
 * per test program. */
#ifndef HEAVE_TESTS_LIB_HTTPS_SERVER_H
#define HEAVE_TESTS_LIB_HTTPS_SERVER_H

#include "gateway/base/buf.h"
#include "gateway/base/loop.h"
#include "gateway/base/stream.h"
#include "gateway/base/tls.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct https_request {
    struct span method;
    struct span target;
    struct span head; /* the whole head, for looking up fields */
    struct span body;
};

enum https_action {
    HTTPS_REPLY,
    HTTPS_DROP,      /* close without an answer */
    HTTPS_HANG,      /* say nothing, keep open */
    HTTPS_DROP_HEAD, /* close after the head, before the body was read */
};

struct https_reply {
    enum https_action action;
    int status;
    char headers[400]; /* "Name: value\r\n" ... */
    const char *body;  /* NULL: empty */
};

struct https_server;
/* `early`: only the head is there; only HTTPS_DROP_HEAD has an effect. */
typedef void (*https_handler)(void *ctx, const struct https_request *request, bool early,
                              struct https_reply *reply);

struct https_connection {
    struct https_connection *next;
    struct https_server *server;
    struct stream *stream;
};

struct https_server {
    struct loop *loop;
    uv_tcp_t listener;
    bool listener_open;
    struct tls_context *tls;
    uint16_t port;
    char folder[64];
    char ca_file[100];
    char key_file[100];
    https_handler handle;
    void *ctx;
    struct https_connection *connections;
    size_t accepted; /* connections so far */
    size_t requests; /* complete requests so far */
};

static struct span https_field(struct span head, const char *name)
{
    while (head.len > 0) {
        struct span line = span_cut(&head, '\n');
        struct span key = span_cut(&line, ':');
        if (span_ieq(span_trim(key), span_of(name))) {
            return span_trim(line);
        }
    }
    return span_make(NULL, 0);
}

static void https_write(struct https_connection *connection, const struct https_reply *reply)
{
    struct buf out;
    buf_init(&out, (size_t)8 << 20);
    const char *body = reply->body != NULL ? reply->body : "";
    int status = buf_printf(&out, "HTTP/1.1 %d X\r\nContent-Length: %zu\r\n%s\r\n%s", reply->status,
                            strlen(body), reply->headers, body);
    if (status != 0 || stream_write(connection->stream, buf_span(&out)) != 0) {
        abort();
    }
    buf_release(&out);
}

static size_t https_on_data(void *ctx, struct span bytes)
{
    struct https_connection *connection = ctx;
    struct https_server *server = connection->server;
    size_t end = span_search(bytes, SPAN_LIT("\r\n\r\n"));
    if (end == bytes.len) {
        return 0;
    }
    struct span head = span_make(bytes.data, end + 2);
    struct span line = head;
    struct https_reply reply = {.action = HTTPS_REPLY, .status = 500};
    struct https_request request = {.head = head};
    request.method = span_cut(&line, ' ');
    request.target = span_cut(&line, ' ');
    uint64_t length = 0;
    if (span_to_u64(https_field(head, "content-length"), 1u << 30, &length) != 0) {
        length = 0;
    }
    server->handle(server->ctx, &request, true, &reply);
    if (reply.action == HTTPS_DROP_HEAD) {
        stream_abort(connection->stream);
        return bytes.len;
    }
    if (bytes.len < end + 4 + length) {
        return 0;
    }
    request.body = span_make(bytes.data + end + 4, length);
    server->requests++;
    reply = (struct https_reply){.action = HTTPS_REPLY, .status = 500};
    server->handle(server->ctx, &request, false, &reply);
    if (reply.action == HTTPS_REPLY) {
        https_write(connection, &reply);
    } else if (reply.action == HTTPS_DROP) {
        stream_abort(connection->stream);
    }
    return end + 4 + length;
}

static void https_on_open(void *ctx)
{
    (void)ctx;
}

static void https_on_close(void *ctx, int status, const char *why)
{
    struct https_connection *connection = ctx;
    struct https_connection **link = &connection->server->connections;
    (void)status;
    (void)why;
    while (*link != connection) {
        link = &(*link)->next;
    }
    *link = connection->next;
    mem_free(connection);
}

static void https_on_accept(uv_stream_t *listener, int status)
{
    static const struct stream_ops ops = {
        .on_open = https_on_open,
        .on_data = https_on_data,
        .on_close = https_on_close,
    };
    struct https_server *server = listener->data;
    struct https_connection *connection = mem_zero(sizeof(*connection));
    connection->server = server;
    if (status != 0 || stream_accept(server->loop, listener, server->tls, &ops, connection,
                                     &(struct stream_limits){.max_unread_bytes = 64u << 20},
                                     &connection->stream) != 0) {
        abort();
    }
    connection->next = server->connections;
    server->connections = connection;
    server->accepted++;
}

static void https_make_certificate(struct https_server *server)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 24 * 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME *name = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    X509_EXTENSION *names = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
    X509_add_ext(certificate, names, -1);
    X509_EXTENSION_free(names);
    X509_EXTENSION *basic = X509V3_EXT_conf_nid(NULL, NULL, NID_basic_constraints, "CA:TRUE");
    X509_add_ext(certificate, basic, -1);
    X509_EXTENSION_free(basic);
    X509_sign(certificate, key, EVP_sha256());
    FILE *file = fopen(server->ca_file, "w");
    FILE *key_file = fopen(server->key_file, "w");
    if (file == NULL || key_file == NULL || PEM_write_X509(file, certificate) != 1 ||
        PEM_write_PrivateKey(key_file, key, NULL, NULL, 0, NULL, NULL) != 1) {
        abort();
    }
    fclose(file);
    fclose(key_file);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

static void https_server_start(struct https_server *server, struct loop *loop)
{
    struct err err = {.code = 0};
    struct sockaddr_in address;
    int len = sizeof(address);
    *server = (struct https_server){.loop = loop};
    snprintf(server->folder, sizeof(server->folder), "/tmp/heave-test-XXXXXX");
    if (mkdtemp(server->folder) == NULL) {
        abort();
    }
    snprintf(server->ca_file, sizeof(server->ca_file), "%s/ca.pem", server->folder);
    snprintf(server->key_file, sizeof(server->key_file), "%s/key.pem", server->folder);
    https_make_certificate(server);
    const struct tls_server_conf conf = {
        .cert_file = server->ca_file, .key_file = server->key_file, .min_version = TLS_1_2};
    if (tls_server_new(&conf, &server->tls, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    uv_tcp_init(loop_uv(loop), &server->listener);
    server->listener.data = server;
    uv_ip4_addr("127.0.0.1", 0, &address);
    if (uv_tcp_bind(&server->listener, (const struct sockaddr *)&address, 0) != 0 ||
        uv_listen((uv_stream_t *)&server->listener, 128, https_on_accept) != 0 ||
        uv_tcp_getsockname(&server->listener, (struct sockaddr *)&address, &len) != 0) {
        abort();
    }
    server->listener_open = true;
    server->port = ntohs(address.sin_port);
}

static inline void https_server_stop_listening(struct https_server *server)
{
    if (server->listener_open) {
        server->listener_open = false;
        uv_close((uv_handle_t *)&server->listener, NULL);
    }
}

static void https_server_release(struct https_server *server)
{
    https_server_stop_listening(server);
    for (struct https_connection *c = server->connections; c != NULL; c = c->next) {
        stream_abort(c->stream);
    }
    for (int i = 0; i < 100 && server->connections != NULL; i++) {
        loop_run_once(server->loop);
    }
    loop_run_once(server->loop);
    tls_context_unref(&server->tls);
    unlink(server->ca_file);
    unlink(server->key_file);
    rmdir(server->folder);
}

static void https_on_late(void *ctx)
{
    (void)ctx;
    fprintf(stderr, "the test waited ten seconds in vain\n");
    abort();
}

/* Keeps the poll short: what sets the flag may run just before it. */
struct https_tick {
    struct loop *loop;
    struct loop_timer timer;
};

static void https_on_tick(void *ctx)
{
    struct https_tick *tick = ctx;
    loop_timer_start(tick->loop, &tick->timer, 5, https_on_tick, tick);
}

/* Runs the loop until `*flag`; fails the program after ten seconds. */
static void https_run_until(struct loop *loop, const bool *flag)
{
    struct loop_timer late = {.loop = NULL};
    struct https_tick tick = {.loop = loop};
    loop_timer_start(loop, &late, 10000, https_on_late, NULL);
    https_on_tick(&tick);
    while (!*flag) {
        uv_run(loop_uv(loop), UV_RUN_ONCE);
    }
    loop_timer_stop(&late);
    loop_timer_stop(&tick.timer);
}

#endif
