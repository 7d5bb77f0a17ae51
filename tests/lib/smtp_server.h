/* A scripted SMTP server for tests: on loopback, on the test's own loop, over base/stream. It
 * behaves well unless the test's `hook` answers for it.
 *
 * Everything is static: a test includes this file once. */
#ifndef HEAVE_TESTS_LIB_SMTP_SERVER_H
#define HEAVE_TESTS_LIB_SMTP_SERVER_H

#include "gateway/base/codec.h"
#include "gateway/base/stream.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>

#define SERVER_MAILS_MAX 3000

/* Instead of a reply. */
#define SERVER_SILENT "silent" /* no answer at all */
#define SERVER_DROP "drop"     /* the connection is aborted */

struct server_mail {
    struct buf from;       /* the whole MAIL line */
    struct buf recipients; /* accepted RCPT lines, each with CR LF */
    struct buf content;    /* as it came over the wire, dots undone, without the final one */
};

struct server_peer;

struct server {
    struct loop *loop;
    uv_tcp_t listener;
    bool listener_closed;
    uint16_t port;
    struct tls_context *tls; /* STARTTLS is offered, or it is implicit */
    bool implicit_tls;
    const char *user; /* AUTH is required */
    const char *password;
    const char *mechanisms; /* of the AUTH line; "LOGIN PLAIN" when NULL */
    bool no_pipelining;
    bool no_8bitmime;
    /* Called for "CONNECT", every command line, and "DOT"; returns a reply line without CR LF,
     * SERVER_SILENT, SERVER_DROP, or NULL to go on as usual. */
    const char *(*hook)(struct server *server, struct server_peer *peer, struct span line);
    void *ctx;
    struct server_mail mails[SERVER_MAILS_MAX];
    size_t mail_count;
    unsigned connections; /* ever */
    unsigned open;
    unsigned tls_sessions;
    struct server_peer *peers;
};

struct server_peer {
    struct server *server;
    struct server_peer *next;
    struct stream *stream;
    struct server_mail mail;
    bool tls;
    bool starting_tls;
    bool signed_in;
    int auth_step; /* 1: user is awaited, 2: password */
    bool in_data;
    bool has_mail;
    unsigned number;     /* 1 for the first connection */
    unsigned recipients; /* accepted */
    unsigned messages;
};

static void server_mail_init(struct server_mail *mail)
{
    buf_init(&mail->from, 10000);
    buf_init(&mail->recipients, 100000);
    buf_init(&mail->content, (size_t)64 << 20);
}

static void server_mail_release(struct server_mail *mail)
{
    buf_release(&mail->from);
    buf_release(&mail->recipients);
    buf_release(&mail->content);
}

static void server_reply(struct server_peer *peer, const char *text)
{
    char line[600];
    (void)snprintf(line, sizeof line, "%s\r\n", text);
    int rc = stream_write(peer->stream, span_of(line));
    ASSERT(rc == 0 || rc == ERR_CLOSED);
}

/* True when the hook has answered. */
static bool server_hooked(struct server_peer *peer, struct span line)
{
    struct server *server = peer->server;
    const char *answer = server->hook != NULL ? server->hook(server, peer, line) : NULL;
    if (answer == NULL) {
        return false;
    }
    if (strcmp(answer, SERVER_DROP) == 0) {
        stream_abort(peer->stream);
    } else if (strcmp(answer, SERVER_SILENT) != 0) {
        server_reply(peer, answer);
        if (strncmp(answer, "421", 3) == 0) {
            stream_close(peer->stream);
        }
    }
    return true;
}

static void server_mail_reset(struct server_peer *peer)
{
    server_mail_release(&peer->mail);
    server_mail_init(&peer->mail);
    peer->has_mail = false;
    peer->recipients = 0;
}

static void server_end_of_data(struct server_peer *peer)
{
    struct server *server = peer->server;
    peer->in_data = false;
    if (server_hooked(peer, SPAN_LIT("DOT"))) {
        server_mail_reset(peer);
        return;
    }
    ASSERT(server->mail_count < SERVER_MAILS_MAX);
    server->mails[server->mail_count++] = peer->mail;
    server_mail_init(&peer->mail);
    server_mail_reset(peer);
    peer->messages++;
    server_reply(peer, "250 2.0.0 queued");
}

static void server_data_line(struct server_peer *peer, struct span line)
{
    if (span_eq(line, SPAN_LIT(".\r\n"))) {
        server_end_of_data(peer);
        return;
    }
    if (line.data[0] == '.') {
        line = span_make(line.data + 1, line.len - 1);
    }
    ASSERT(buf_append(&peer->mail.content, line) == 0);
}

static void server_ehlo(struct server_peer *peer)
{
    const struct server *server = peer->server;
    server_reply(peer, "250-mx.test");
    if (!server->no_pipelining) {
        server_reply(peer, "250-PIPELINING");
    }
    if (!server->no_8bitmime) {
        server_reply(peer, "250-8BITMIME");
    }
    if (server->tls != NULL && !peer->tls) {
        server_reply(peer, "250-STARTTLS");
    } else if (server->user != NULL) {
        char line[100];
        (void)snprintf(line, sizeof line, "250-AUTH %s",
                       server->mechanisms != NULL ? server->mechanisms : "LOGIN PLAIN");
        server_reply(peer, line);
    }
    server_reply(peer, "250 SIZE 20000000");
}

static bool server_same_base64(struct span encoded, const char *want)
{
    struct buf plain;
    buf_init(&plain, 1000);
    bool same = codec_base64_decode(encoded, false, &plain) == 0 &&
                span_eq(buf_span(&plain), span_of(want));
    buf_release(&plain);
    return same;
}

static bool server_same_plain(struct span encoded, const struct server *server)
{
    struct buf want;
    struct buf got;
    buf_init(&want, 1000);
    buf_init(&got, 1000);
    ASSERT(buf_append_byte(&want, '\0') == 0 && buf_append(&want, span_of(server->user)) == 0 &&
           buf_append_byte(&want, '\0') == 0 && buf_append(&want, span_of(server->password)) == 0);
    bool same = codec_base64_decode(encoded, false, &got) == 0 &&
                span_eq(buf_span(&got), buf_span(&want));
    buf_release(&want);
    buf_release(&got);
    return same;
}

static void server_signed_in(struct server_peer *peer, bool right)
{
    peer->auth_step = 0;
    peer->signed_in = right;
    server_reply(peer, right ? "235 2.7.0 Authentication successful"
                             : "535 5.7.3 Authentication unsuccessful");
}

static void server_auth_line(struct server_peer *peer, struct span line)
{
    if (peer->auth_step == 1) {
        peer->auth_step = server_same_base64(line, peer->server->user) ? 2 : 3;
        server_reply(peer, "334 UGFzc3dvcmQ6");
        return;
    }
    server_signed_in(peer,
                     peer->auth_step == 2 && server_same_base64(line, peer->server->password));
}

static void server_mail_command(struct server_peer *peer, struct span line)
{
    if (peer->server->user != NULL && !peer->signed_in) {
        server_reply(peer, "530 5.7.57 Client was not authenticated");
    } else if (peer->has_mail) {
        server_reply(peer, "503 nested MAIL");
    } else {
        peer->has_mail = true;
        ASSERT(buf_append(&peer->mail.from, line) == 0);
        server_reply(peer, "250 2.1.0 Sender OK");
    }
}

static void server_rcpt_command(struct server_peer *peer, struct span line)
{
    if (!peer->has_mail) {
        server_reply(peer, "503 need MAIL");
        return;
    }
    peer->recipients++;
    ASSERT(buf_printf(&peer->mail.recipients, "%.*s\r\n", SPAN_FMT(line)) == 0);
    server_reply(peer, "250 2.1.5 Recipient OK");
}

static void server_starttls(struct server_peer *peer)
{
    server_reply(peer, "220 2.0.0 SMTP server ready");
    peer->starting_tls = true;
    ASSERT(stream_start_tls(peer->stream, peer->server->tls, NULL) == 0);
}

static void server_command(struct server_peer *peer, struct span line)
{
    if (peer->auth_step > 0) {
        server_auth_line(peer, line);
    } else if (server_hooked(peer, line)) {
        return;
    } else if (span_istarts(line, SPAN_LIT("EHLO "))) {
        server_ehlo(peer);
    } else if (span_ieq(line, SPAN_LIT("STARTTLS"))) {
        server_starttls(peer);
    } else if (span_ieq(line, SPAN_LIT("AUTH LOGIN"))) {
        peer->auth_step = 1;
        server_reply(peer, "334 VXNlcm5hbWU6");
    } else if (span_istarts(line, SPAN_LIT("AUTH PLAIN "))) {
        server_signed_in(peer,
                         server_same_plain(span_make(line.data + 11, line.len - 11), peer->server));
    } else if (span_istarts(line, SPAN_LIT("MAIL FROM:"))) {
        server_mail_command(peer, line);
    } else if (span_istarts(line, SPAN_LIT("RCPT TO:"))) {
        server_rcpt_command(peer, line);
    } else if (span_ieq(line, SPAN_LIT("DATA"))) {
        peer->in_data = peer->recipients > 0;
        server_reply(peer, peer->in_data ? "354 go" : "503 no recipients");
    } else if (span_ieq(line, SPAN_LIT("RSET"))) {
        server_mail_reset(peer);
        server_reply(peer, "250 2.0.0 reset");
    } else if (span_ieq(line, SPAN_LIT("QUIT"))) {
        server_reply(peer, "221 2.0.0 bye");
        stream_close(peer->stream);
    } else {
        server_reply(peer, "500 5.5.1 what?");
    }
}

static size_t server_on_data(void *ctx, struct span bytes)
{
    struct server_peer *peer = ctx;
    size_t used = 0;
    while (used < bytes.len && !peer->starting_tls) {
        struct span rest = span_make(bytes.data + used, bytes.len - used);
        size_t end = span_find(rest, '\n');
        if (end == rest.len) {
            break;
        }
        used += end + 1;
        if (peer->in_data) {
            server_data_line(peer, span_make(rest.data, end + 1));
        } else {
            server_command(peer, span_trim(span_make(rest.data, end)));
        }
    }
    return used;
}

static void server_on_open(void *ctx)
{
    struct server_peer *peer = ctx;
    if (peer->server->implicit_tls || peer->starting_tls) {
        peer->tls = true;
        peer->server->tls_sessions++;
    }
    if (!peer->starting_tls && !server_hooked(peer, SPAN_LIT("CONNECT"))) {
        server_reply(peer, "220 mx.test ESMTP");
    }
    peer->starting_tls = false;
}

static void server_on_close(void *ctx, int status, const char *why)
{
    (void)status;
    (void)why;
    struct server_peer *peer = ctx;
    struct server_peer **link = &peer->server->peers;
    while (*link != peer) {
        link = &(*link)->next;
    }
    *link = peer->next;
    peer->server->open--;
    server_mail_release(&peer->mail);
    mem_free(peer);
}

static void server_on_connection(uv_stream_t *listener, int status)
{
    static const struct stream_ops ops = {
        .on_open = server_on_open,
        .on_data = server_on_data,
        .on_close = server_on_close,
    };
    static const struct stream_limits limits = {.max_unread_bytes = 1 << 20};
    struct server *server = listener->data;
    ASSERT(status == 0);
    struct server_peer *peer = mem_zero(sizeof *peer);
    peer->server = server;
    peer->number = ++server->connections;
    peer->next = server->peers;
    server->peers = peer;
    server->open++;
    server_mail_init(&peer->mail);
    ASSERT(stream_accept(server->loop, listener, server->implicit_tls ? server->tls : NULL, &ops,
                         peer, &limits, &peer->stream) == 0);
}

/* `server` is the test's memory, its settings may be changed afterwards. */
static void server_start(struct server *server, struct loop *loop)
{
    memset(server, 0, sizeof *server);
    server->loop = loop;
    ASSERT(uv_tcp_init(loop_uv(loop), &server->listener) == 0);
    server->listener.data = server;
    struct sockaddr_in address;
    ASSERT(uv_ip4_addr("127.0.0.1", 0, &address) == 0);
    ASSERT(uv_tcp_bind(&server->listener, (const struct sockaddr *)&address, 0) == 0);
    ASSERT(uv_listen((uv_stream_t *)&server->listener, 100, server_on_connection) == 0);
    int len = sizeof address;
    ASSERT(uv_tcp_getsockname(&server->listener, (struct sockaddr *)&address, &len) == 0);
    server->port = ntohs(address.sin_port);
}

static void server_on_listener_closed(uv_handle_t *handle)
{
    struct server *server = handle->data;
    server->listener_closed = true;
}

/* Ends the listener and every connection; runs the loop until they are gone. */
static void server_stop(struct server *server)
{
    uv_close((uv_handle_t *)&server->listener, server_on_listener_closed);
    for (struct server_peer *peer = server->peers; peer != NULL; peer = peer->next) {
        stream_abort(peer->stream);
    }
    while (server->open > 0 || !server->listener_closed) {
        (void)uv_run(loop_uv(server->loop), UV_RUN_ONCE);
    }
    for (size_t i = 0; i < server->mail_count; i++) {
        server_mail_release(&server->mails[i]);
    }
    tls_context_unref(&server->tls);
}

#endif
