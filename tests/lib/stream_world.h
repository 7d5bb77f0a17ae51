/* Two sides and a listener on one loop, for tests/unit/base_stream.c: what each side saw, and how
 * it reacts. */
#ifndef HEAVE_TESTS_LIB_STREAM_WORLD_H
#define HEAVE_TESTS_LIB_STREAM_WORLD_H

#include "gateway/base/stream.h"

#include "gateway/base/clock.h"
#include "tests/lib/test_certs.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* Runs the loop event by event until the condition holds. Tasks may make it hold just before the
 * loop goes to poll; the world's pulse then brings it back. */
#define RUN_UNTIL(world, condition)                        \
    while (!(condition)) {                                 \
        (void)uv_run(loop_uv((world)->loop), UV_RUN_ONCE); \
    }

enum reaction {
    KEEP_GOING,
    CLOSE_IT,
    ABORT_IT,
};

/* The names of the tests, in place of the C library's, so that no resolver is asked.
 * many.heave.test has two addresses nobody listens on before the right one. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **out)
{
    (void)hints;
    bool many = strcmp(node, "many.heave.test") == 0;
    if (!many && strcmp(node, "localhost") != 0) {
        return EAI_NONAME;
    }
    static const uint8_t last_bytes[] = {3, 2, 1};
    uint64_t port = 0;
    ASSERT(span_to_u64(span_of(service), UINT16_MAX, &port) == ERR_OK);
    *out = NULL;
    for (size_t i = 3; i-- > (many ? 0U : 2U);) {
        struct addrinfo *info = mem_zero(sizeof(*info));
        struct sockaddr_in *name = mem_zero(sizeof(*name));
        name->sin_family = AF_INET;
        name->sin_port = htons((uint16_t)port);
        name->sin_addr.s_addr = htonl(0x7f000000U | last_bytes[i]);
        *info = (struct addrinfo){.ai_family = AF_INET,
                                  .ai_socktype = SOCK_STREAM,
                                  .ai_addrlen = sizeof(*name),
                                  .ai_addr = (struct sockaddr *)name,
                                  .ai_next = *out};
        *out = info;
    }
    return 0;
}

void freeaddrinfo(struct addrinfo *list)
{
    while (list != NULL) {
        struct addrinfo *next = list->ai_next;
        mem_free(list->ai_addr);
        mem_free(list);
        list = next;
    }
}

/* One end of a connection and what happened to it. */
struct side {
    struct world *world;
    struct stream *stream;
    struct buf got;
    size_t take;        /* at most so many bytes a call; SIZE_MAX: all */
    size_t shown_bytes; /* the most one on_data was given */
    int opens;
    int datas;
    int drains;
    int deadlines;
    int closes;
    int status;
    char why[400];
    bool busy; /* the test is inside a call of its own: no callback may come */
    bool echo;
    bool starttls;
    enum reaction on_open;
    enum reaction on_data;
};

struct world {
    struct loop *loop;
    union {
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } listener;
    uv_timer_t pulse;
    uint16_t port;
    char path[64];
    struct tls_context *server_tls; /* of accepted streams */
    struct tls_context *upgrade_tls;
    struct tls_context *client_tls;
    struct stream_limits server_limits;
    struct stream_limits client_limits;
    const struct stream_ops *server_ops;
    struct side server;
    struct side client;
    int accept_rc;
};

static struct test_certs certs;

/* ---- The callbacks of a side ---- */

static void react(struct side *side, enum reaction reaction)
{
    if (reaction == CLOSE_IT) {
        stream_close(side->stream);
        stream_close(side->stream);
    } else if (reaction == ABORT_IT) {
        stream_abort(side->stream);
        stream_abort(side->stream);
    }
}

static void side_open(void *ctx)
{
    struct side *side = ctx;
    assert_false(side->busy);
    assert_int_equal(side->closes, 0);
    side->opens++;
    react(side, side->on_open);
}

/* The smallest server of STARTTLS: answers, and goes on under TLS. */
static size_t side_starttls(struct side *side, struct span bytes)
{
    static const struct span command = {.data = "STARTTLS\r\n", .len = 10};
    if (!span_starts(bytes, command)) {
        return 0;
    }
    side->starttls = false;
    assert_int_equal(stream_write(side->stream, SPAN_LIT("220 go\r\n")), ERR_OK);
    assert_int_equal(stream_start_tls(side->stream, side->world->upgrade_tls, NULL), ERR_OK);
    return command.len;
}

static size_t side_data(void *ctx, struct span bytes)
{
    struct side *side = ctx;
    assert_false(side->busy);
    assert_int_equal(side->closes, 0);
    assert_true(bytes.len > 0);
    side->datas++;
    if (bytes.len > side->shown_bytes) {
        side->shown_bytes = bytes.len;
    }
    if (side->starttls) {
        return side_starttls(side, bytes);
    }
    size_t taken = bytes.len < side->take ? bytes.len : side->take;
    bytes.len = taken;
    assert_int_equal(buf_append(&side->got, bytes), ERR_OK);
    if (side->echo && taken > 0) {
        assert_int_equal(stream_write(side->stream, bytes), ERR_OK);
    }
    react(side, side->on_data);
    return taken;
}

static void side_drain(void *ctx)
{
    struct side *side = ctx;
    assert_false(side->busy);
    assert_false(stream_above_high_water(side->stream));
    side->drains++;
}

static void side_deadline(void *ctx)
{
    struct side *side = ctx;
    assert_false(side->busy);
    side->deadlines++;
}

static void side_close(void *ctx, int status, const char *why)
{
    struct side *side = ctx;
    assert_false(side->busy);
    assert_int_equal(side->closes, 0);
    side->closes++;
    side->status = status;
    (void)snprintf(side->why, sizeof(side->why), "%s", why);
    assert_int_equal(stream_write(side->stream, SPAN_LIT("late")), ERR_CLOSED);
    stream_close(side->stream);
    stream_abort(side->stream);
    side->stream = NULL;
}

static const struct stream_ops side_ops = {
    .on_open = side_open,
    .on_data = side_data,
    .on_drain = side_drain,
    .on_deadline = side_deadline,
    .on_close = side_close,
};
/* Without the optional ones. */
static const struct stream_ops bare_ops = {
    .on_open = side_open,
    .on_data = side_data,
    .on_close = side_close,
};

/* ---- The world ---- */

static void on_connection(uv_stream_t *listener, int status)
{
    struct world *world = listener->data;
    assert_int_equal(status, 0);
    world->accept_rc = stream_accept(world->loop, listener, world->server_tls, world->server_ops,
                                     &world->server, &world->server_limits, &world->server.stream);
    assert_int_equal(world->accept_rc, ERR_OK);
    assert_int_equal(world->server.opens, 0);
}

static void side_init(struct side *side, struct world *world)
{
    *side = (struct side){.world = world, .take = SIZE_MAX};
    buf_init(&side->got, 100000000);
}

static void on_pulse(uv_timer_t *timer)
{
    (void)timer; /* waking the loop is all it is for */
}

static void world_init(struct world *world)
{
    *world = (struct world){.loop = loop_new("test"), .server_ops = &side_ops};
    assert_int_equal(uv_timer_init(loop_uv(world->loop), &world->pulse), 0);
    assert_int_equal(uv_timer_start(&world->pulse, on_pulse, 5, 5), 0);
    side_init(&world->server, world);
    side_init(&world->client, world);
}

static void listen_on(struct world *world, const char *address)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } name;
    if (uv_ip4_addr(address, 0, &name.v4) != 0) {
        assert_int_equal(uv_ip6_addr(address, 0, &name.v6), 0);
    }
    assert_int_equal(uv_tcp_init(loop_uv(world->loop), &world->listener.tcp), 0);
    world->listener.tcp.data = world;
    assert_int_equal(uv_tcp_bind(&world->listener.tcp, &name.any, 0), 0);
    assert_int_equal(uv_listen(&world->listener.stream, 16, on_connection), 0);
    int size = sizeof(name);
    assert_int_equal(uv_tcp_getsockname(&world->listener.tcp, &name.any, &size), 0);
    world->port = ntohs(name.any.sa_family == AF_INET6 ? name.v6.sin6_port : name.v4.sin_port);
}

static void dial(struct world *world, const char *host, const char *tls_host)
{
    const struct stream_target target = {
        .host = host,
        .port = world->port,
        .tls = world->client_tls,
        .tls_host = tls_host,
        .connect_timeout_ms = 20000,
    };
    struct side *client = &world->client;
    client->busy = true;
    assert_int_equal(stream_connect(world->loop, &target, &side_ops, client, &world->client_limits,
                                    &client->stream),
                     ERR_OK);
    client->busy = false;
}

/* Listener, connection, both sides open. */
static void world_connect(struct world *world)
{
    listen_on(world, "127.0.0.1");
    dial(world, "127.0.0.1", "localhost");
    RUN_UNTIL(world, world->client.opens == 1 && world->server.opens == 1);
}

static void world_free(struct world *world)
{
    loop_free(&world->loop);
    assert_null(world->client.stream);
    assert_null(world->server.stream);
    buf_release(&world->client.got);
    buf_release(&world->server.got);
    tls_context_unref(&world->server_tls);
    tls_context_unref(&world->upgrade_tls);
    tls_context_unref(&world->client_tls);
}

static void make_tls(struct tls_context **server, struct tls_context **client, const char *ca,
                     bool verify)
{
    const struct tls_server_conf server_conf = {
        .cert_file = certs.server_cert,
        .key_file = certs.server_key,
        .min_version = TLS_1_2,
    };
    const struct tls_client_conf client_conf = {
        .ca_file = ca,
        .min_version = TLS_1_2,
        .verify = verify,
    };
    struct err err = {.code = 0};
    if (tls_server_new(&server_conf, server, &err) != ERR_OK ||
        tls_client_new(&client_conf, client, &err) != ERR_OK) {
        fail_msg("%s", err.text);
    }
}

static char pattern_at(size_t i)
{
    return (char)((i * 31 + (i >> 8) * 7) % 253);
}

static void write_pattern(struct side *side, size_t from, size_t len)
{
    char *bytes = mem_alloc(len);
    for (size_t i = 0; i < len; i++) {
        bytes[i] = pattern_at(from + i);
    }
    side->busy = true;
    assert_int_equal(stream_write(side->stream, span_make(bytes, len)), ERR_OK);
    side->busy = false;
    mem_free(bytes);
}

static void check_pattern(const struct side *side, size_t len)
{
    struct span got = buf_span(&side->got);
    assert_int_equal(got.len, len);
    for (size_t i = 0; i < len; i++) {
        if (got.data[i] != pattern_at(i)) {
            fail_msg("byte %zu is wrong", i);
        }
    }
}

#endif
