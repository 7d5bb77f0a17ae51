/* Streams over real sockets on loopback: a listener and both ends on one loop. The test waits for
 * events, never for time to pass; a watchdog ends the program if one does not come. */
#include "tests/lib/stream_world.h"

/* ---- Echo ---- */

static void check_echo(struct world *world, size_t len)
{
    world->server.echo = true;
    size_t written = 0;
    for (size_t step = 1; written < len; step = step * 3 + 1) {
        size_t part = len - written < step ? len - written : step;
        write_pattern(&world->client, written, part);
        written += part;
    }
    RUN_UNTIL(world, buf_len(&world->client.got) >= len);
    check_pattern(&world->server, len);
    check_pattern(&world->client, len);
    assert_int_equal(stream_pending_bytes(world->client.stream), 0);
    stream_close(world->client.stream);
    RUN_UNTIL(world, world->client.closes == 1 && world->server.closes == 1);
    assert_int_equal(world->client.status, ERR_OK);
    assert_int_equal(world->server.status, ERR_CLOSED);
}

static void test_echo_plain(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 1000, 5000000};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct world world;
        world_init(&world);
        world_connect(&world);
        assert_false(stream_is_tls(world.client.stream));
        assert_string_equal(stream_tls_version(world.client.stream), "");
        assert_string_equal(stream_peer_address(world.server.stream), "127.0.0.1");
        char peer[64];
        (void)snprintf(peer, sizeof(peer), "127.0.0.1:%u", (unsigned)world.port);
        assert_string_equal(stream_peer(world.client.stream), peer);
        check_echo(&world, sizes[i]);
        world_free(&world);
    }
}

static void test_echo_tls(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 1000, 5000000};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct world world;
        world_init(&world);
        make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        world_connect(&world);
        assert_true(stream_is_tls(world.server.stream));
        assert_string_equal(stream_tls_version(world.server.stream), "TLSv1.3");
        assert_string_equal(stream_alpn(world.client.stream), "");
        check_echo(&world, sizes[i]);
        world_free(&world);
    }
}

static void test_echo_ipv6(void **state)
{
    (void)state;
    int probe = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool have = probe >= 0 && bind(probe, (struct sockaddr *)&name, sizeof(name)) == 0;
    close(probe);
    if (!have) {
        skip(); /* this machine has no IPv6 */
    }
    struct world world;
    world_init(&world);
    listen_on(&world, "::1");
    dial(&world, "::1", NULL);
    RUN_UNTIL(&world, world.client.opens == 1 && world.server.opens == 1);
    assert_memory_equal(stream_peer(world.server.stream), "[::1]:", 6);
    assert_string_equal(stream_peer_address(world.server.stream), "::1");
    check_echo(&world, 1000);
    world_free(&world);

    /* An IPv4 client of a socket for both is shown as an IPv4 client. */
    world_init(&world);
    listen_on(&world, "::");
    dial(&world, "127.0.0.1", NULL);
    RUN_UNTIL(&world, world.client.opens == 1 && world.server.opens == 1);
    assert_string_equal(stream_peer_address(world.server.stream), "127.0.0.1");
    assert_memory_equal(stream_peer(world.server.stream), "127.0.0.1:", 10);
    check_echo(&world, 1000);
    world_free(&world);
}

static void test_echo_unix(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    (void)snprintf(world.path, sizeof(world.path), "%.50s/s.sock", certs.dir);
    assert_int_equal(uv_pipe_init(loop_uv(world.loop), &world.listener.pipe, 0), 0);
    world.listener.pipe.data = &world;
    assert_int_equal(uv_pipe_bind(&world.listener.pipe, world.path), 0);
    assert_int_equal(uv_listen(&world.listener.stream, 16, on_connection), 0);
    dial(&world, world.path, NULL);
    RUN_UNTIL(&world, world.client.opens == 1 && world.server.opens == 1);
    assert_string_equal(stream_peer(world.server.stream), "unix");
    assert_string_equal(stream_peer_address(world.client.stream), "unix");
    check_echo(&world, 300000);
    world_free(&world);
}

/* A name with several addresses: those nobody listens on are passed over. */
static void test_connect_by_name(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    listen_on(&world, "127.0.0.1");
    dial(&world, "many.heave.test", NULL);
    RUN_UNTIL(&world, world.client.opens == 1 && world.server.opens == 1);
    assert_string_equal(stream_peer_address(world.client.stream), "127.0.0.1");
    check_echo(&world, 10);
    world_free(&world);

    world_init(&world);
    world.port = 25;
    dial(&world, "nobody.heave.test", NULL);
    RUN_UNTIL(&world, world.client.closes == 1);
    assert_int_equal(world.client.status, ERR_IO);
    assert_string_equal(world.client.why,
                        "Connecting to nobody.heave.test port 25 failed: unknown node or service.");
    world_free(&world);
}

/* What is written before the connection stands leaves when it does. */
static void test_write_early(void **state)
{
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        struct world world;
        world_init(&world);
        if (tls == 1) {
            make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        }
        listen_on(&world, "127.0.0.1");
        dial(&world, "127.0.0.1", "localhost");
        write_pattern(&world.client, 0, 100000);
        stream_resume(world.client.stream); /* must not start anything twice */
        RUN_UNTIL(&world, buf_len(&world.server.got) >= 100000);
        check_pattern(&world.server, 100000);
        assert_int_equal(world.client.opens, 1);
        world_free(&world);
    }
}

/* ---- Refusals ---- */

static void test_connect_refused(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    /* A port that was free a moment ago, and that nobody listens on. */
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(name);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&name, &size), 0);
    world.port = ntohs(name.sin_port);
    dial(&world, "127.0.0.1", NULL);
    RUN_UNTIL(&world, world.client.closes == 1);
    assert_int_equal(world.client.status, ERR_IO);
    assert_int_equal(world.client.opens, 0);
    assert_non_null(strstr(world.client.why, "connection refused"));
    close(fd);
    world_free(&world);
}

static void test_connect_invalid(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    char path[200];
    memset(path, '/', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    const struct stream_target bad[] = {
        {.host = NULL, .port = 25},
        {.host = "", .port = 25},
        {.host = "relative/path", .port = 0},
        {.host = path, .port = 0},
        {.host = "localhost", .port = 25, .connect_timeout_ms = -1},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct stream *stream = NULL;
        assert_int_equal(
            stream_connect(world.loop, &bad[i], &side_ops, &world.client, NULL, &stream),
            ERR_INVAL);
        assert_null(stream);
    }
    world_free(&world);
}

/* A server whose kernel takes the connection and that never says a word: the time-out covers TLS.
 */
static void test_connect_timeout(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(name);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, size), 0);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&name, &size), 0);
    const struct stream_target target = {
        .host = "127.0.0.1",
        .port = ntohs(name.sin_port),
        .tls = world.client_tls,
        .connect_timeout_ms = 50,
    };
    int64_t start_ms = clock_mono_ms();
    assert_int_equal(
        stream_connect(world.loop, &target, &side_ops, &world.client, NULL, &world.client.stream),
        ERR_OK);
    RUN_UNTIL(&world, world.client.closes == 1);
    assert_int_equal(world.client.status, ERR_TIMEOUT);
    assert_true(clock_mono_ms() - start_ms >= 49);
    assert_non_null(strstr(world.client.why, "TLS handshake"));
    close(fd);
    world_free(&world);
}

static void check_tls_refused(const char *ca, const char *host, const char *why)
{
    struct world world;
    world_init(&world);
    make_tls(&world.server_tls, &world.client_tls, ca, true);
    listen_on(&world, "127.0.0.1");
    dial(&world, "127.0.0.1", host);
    write_pattern(&world.client, 0, 1000);
    RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
    assert_int_equal(world.client.status, ERR_DENIED);
    assert_string_equal(world.client.why, why);
    assert_int_equal(world.client.opens, 0);
    /* The alert arrived, and not one byte of what was written. */
    assert_int_equal(world.server.status, ERR_PROTO);
    assert_int_equal(buf_len(&world.server.got), 0);
    world_free(&world);
}

static void test_tls_refused(void **state)
{
    (void)state;
    check_tls_refused(certs.ca, "mail.example",
                      "The certificate of mail.example was issued for another name.");
    check_tls_refused(certs.alien, "localhost",
                      "The certificate of localhost is not trusted: unable to get local issuer "
                      "certificate.");
}

static void test_tls_unverified(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    make_tls(&world.server_tls, &world.client_tls, certs.alien, false);
    listen_on(&world, "127.0.0.1");
    dial(&world, "127.0.0.1", "mail.example");
    RUN_UNTIL(&world, world.client.opens == 1 && world.server.opens == 1);
    check_echo(&world, 100);
    world_free(&world);
}

/* A client that does not speak TLS to a port that does. */
static void test_tls_garbage(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
    tls_context_unref(&world.client_tls);
    listen_on(&world, "127.0.0.1");
    dial(&world, "127.0.0.1", NULL);
    assert_int_equal(stream_write(world.client.stream, SPAN_LIT("EHLO there\r\n")), ERR_OK);
    RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
    assert_int_equal(world.server.status, ERR_PROTO);
    assert_int_equal(world.server.opens, 0);
    assert_int_equal(world.client.status, ERR_CLOSED);
    world_free(&world);
}

/* ---- STARTTLS ---- */

/* CVE-2011-0411: what came in plain behind STARTTLS must be gone. */
static void test_starttls(void **state)
{
    (void)state;
    for (int injected = 0; injected < 2; injected++) {
        struct world world;
        world_init(&world);
        make_tls(&world.upgrade_tls, &world.client_tls, certs.ca, true);
        struct tls_context *client_tls = world.client_tls;
        world.client_tls = NULL;
        world_connect(&world);
        world.client_tls = client_tls;
        world.server.starttls = true;
        struct span command = SPAN_LIT("STARTTLS\r\n");
        struct span attack = SPAN_LIT("STARTTLS\r\nMAIL FROM:<evil@example>\r\n");
        assert_int_equal(stream_write(world.client.stream, injected == 1 ? attack : command),
                         ERR_OK);
        RUN_UNTIL(&world, span_eq(buf_span(&world.client.got), SPAN_LIT("220 go\r\n")));
        buf_reset(&world.client.got);
        world.client.busy = true;
        assert_int_equal(stream_start_tls(world.client.stream, client_tls, "localhost"), ERR_OK);
        world.client.busy = false;
        /* Written before the handshake, sent after it. */
        assert_int_equal(stream_write(world.client.stream, SPAN_LIT("EHLO me\r\n")), ERR_OK);
        RUN_UNTIL(&world, buf_len(&world.server.got) > 0);
        assert_true(span_eq(buf_span(&world.server.got), SPAN_LIT("EHLO me\r\n")));
        assert_int_equal(world.client.opens, 2);
        assert_int_equal(world.server.opens, 2);
        assert_true(stream_is_tls(world.server.stream));
        assert_string_equal(stream_tls_version(world.client.stream), "TLSv1.3");
        buf_reset(&world.server.got);
        check_echo(&world, 100000);
        world_free(&world);
    }
}

/* A large plain answer that has not left when TLS starts goes out plain, before the handshake. */
static void test_starttls_flushes_first(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    make_tls(&world.upgrade_tls, &world.client_tls, certs.ca, true);
    struct tls_context *client_tls = world.client_tls;
    world.client_tls = NULL;
    world_connect(&world);
    world.client_tls = client_tls;
    stream_pause(world.client.stream);
    write_pattern(&world.server, 0, 10000000);
    (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT); /* some of it is in flight now */
    write_pattern(&world.server, 10000000, 10);
    assert_int_equal(stream_start_tls(world.server.stream, world.upgrade_tls, NULL), ERR_OK);
    stream_resume(world.client.stream);
    RUN_UNTIL(&world, buf_len(&world.client.got) >= 10000010);
    check_pattern(&world.client, 10000010);
    buf_reset(&world.client.got);
    assert_int_equal(stream_start_tls(world.client.stream, client_tls, "localhost"), ERR_OK);
    RUN_UNTIL(&world, world.client.opens == 2 && world.server.opens == 2);
    check_echo(&world, 100);
    world_free(&world);
}

/* ---- Deadlines ---- */

static void test_deadline(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    world_connect(&world);
    int64_t start_ms = clock_mono_ms();
    stream_deadline(world.server.stream, 1);
    stream_deadline(world.server.stream, 30);
    RUN_UNTIL(&world, world.server.deadlines == 1);
    assert_true(clock_mono_ms() - start_ms >= 29);
    /* The stream is still there; a deadline taken away does not pass. */
    stream_deadline(world.server.stream, 1);
    stream_deadline(world.server.stream, 0);
    stream_deadline(world.client.stream, 20);
    RUN_UNTIL(&world, world.client.deadlines == 1);
    assert_int_equal(world.server.deadlines, 1);
    check_echo(&world, 10);
    world_free(&world);
}

static void test_deadline_closes(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    world.server_ops = &bare_ops;
    world_connect(&world);
    stream_deadline(world.server.stream, 1);
    RUN_UNTIL(&world, world.server.closes == 1 && world.client.closes == 1);
    assert_int_equal(world.server.status, ERR_TIMEOUT);
    assert_int_equal(world.client.status, ERR_CLOSED);
    world_free(&world);
}

/* ---- Back-pressure ---- */

static void check_back_pressure(bool tls)
{
    struct world world;
    world_init(&world);
    if (tls) {
        make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
    }
    world.client_limits = (struct stream_limits){.high_water_bytes = 100000,
                                                 .max_pending_bytes = 20000000};
    world_connect(&world);
    stream_pause(world.server.stream);
    write_pattern(&world.client, 0, 100000);
    assert_false(stream_above_high_water(world.client.stream));
    write_pattern(&world.client, 100000, 15900000);
    assert_true(stream_above_high_water(world.client.stream));
    assert_int_equal(stream_pending_bytes(world.client.stream), 16000000);
    char *more = mem_zero(4000001);
    assert_int_equal(stream_write(world.client.stream, span_make(more, 4000001)), ERR_LIMIT);
    mem_free(more);
    /* The kernel takes what it takes; then nothing moves, and nobody is told to go on. */
    size_t pending = 0;
    while (pending != stream_pending_bytes(world.client.stream)) {
        pending = stream_pending_bytes(world.client.stream);
        (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
        (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
    }
    assert_true(pending > 1000000 && pending < 16100000);
    assert_int_equal(world.client.drains, 0);
    assert_int_equal(world.server.datas, 0);
    stream_resume(world.server.stream);
    RUN_UNTIL(&world, world.client.drains == 1);
    assert_true(stream_pending_bytes(world.client.stream) < 25000);
    RUN_UNTIL(&world, buf_len(&world.server.got) >= 16000000);
    check_pattern(&world.server, 16000000);
    assert_int_equal(world.client.drains, 1);
    world_free(&world);
}

static void test_back_pressure(void **state)
{
    (void)state;
    check_back_pressure(false);
    check_back_pressure(true);
}

/* The pattern from `from` on, in memory the stream is given. */
static void give_pattern(struct side *side, size_t from, size_t count)
{
    struct buf bytes;
    char *room = NULL;
    buf_init(&bytes, count);
    assert_int_equal(buf_reserve(&bytes, count, &room), ERR_OK);
    for (size_t i = 0; i < count; i++) {
        room[i] = pattern_at(from + i);
    }
    buf_commit(&bytes, count);
    side->busy = true;
    assert_int_equal(stream_give(side->stream, &bytes), ERR_OK);
    side->busy = false;
    assert_null(bytes.data);
    assert_int_equal(bytes.max, count);
}

static void check_give(bool tls)
{
    struct world world;
    world_init(&world);
    if (tls) {
        make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
    }
    world.client_limits = (struct stream_limits){.max_pending_bytes = 3000000};
    world_connect(&world);
    stream_pause(world.server.stream);
    /* Written and given bytes keep their order, whichever comes first. */
    give_pattern(&world.client, 0, 400000);
    write_pattern(&world.client, 400000, 10);
    give_pattern(&world.client, 400010, 100000);
    give_pattern(&world.client, 500010, 1500000);
    write_pattern(&world.client, 2000010, 600000);
    write_pattern(&world.client, 2600010, 5);
    assert_int_equal(stream_pending_bytes(world.client.stream), 2600015);
    struct buf more;
    buf_init(&more, 500000);
    char *room = NULL;
    assert_int_equal(buf_reserve(&more, 500000, &room), ERR_OK);
    memset(room, 0, 500000);
    buf_commit(&more, 500000);
    assert_int_equal(stream_give(world.client.stream, &more), ERR_LIMIT);
    assert_int_equal(buf_len(&more), 500000);
    buf_release(&more);
    stream_resume(world.server.stream);
    RUN_UNTIL(&world, buf_len(&world.server.got) >= 2600015);
    check_pattern(&world.server, 2600015);
    assert_int_equal(stream_pending_bytes(world.client.stream), 0);
    /* What never leaves is freed with the stream. */
    give_pattern(&world.client, 0, 400000);
    give_pattern(&world.client, 0, 400000);
    stream_abort(world.client.stream);
    world_free(&world);
}

static void test_give(void **state)
{
    (void)state;
    check_give(false);
    check_give(true);
}

static void check_unread(bool tls)
{
    struct world world;
    world_init(&world);
    if (tls) {
        make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
    }
    world.server_limits = (struct stream_limits){.max_unread_bytes = 1000};
    world_connect(&world);
    world.server.take = 0;
    write_pattern(&world.client, 0, 10000);
    RUN_UNTIL(&world, world.server.shown_bytes == 1000);
    /* Full: not one call more until somebody asks for it, though the bytes are there. */
    int datas = world.server.datas;
    for (int i = 0; i < 10; i++) {
        (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
    }
    assert_int_equal(world.server.datas, datas);
    /* Asked for, the same bytes come again; still nothing is used. */
    world.server.busy = true;
    stream_resume(world.server.stream);
    world.server.busy = false;
    RUN_UNTIL(&world, world.server.datas == datas + 1);
    /* Used piece by piece, they all come, in order. */
    world.server.take = 700;
    while (buf_len(&world.server.got) < 10000) {
        stream_resume(world.server.stream);
        (void)uv_run(loop_uv(world.loop), UV_RUN_ONCE);
    }
    check_pattern(&world.server, 10000);
    assert_int_equal(world.server.shown_bytes, 1000);
    world_free(&world);
}

static void test_unread_limit(void **state)
{
    (void)state;
    check_unread(false);
    check_unread(true);
}

static void test_pause(void **state)
{
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        struct world world;
        world_init(&world);
        if (tls == 1) {
            make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        }
        world_connect(&world);
        stream_pause(world.server.stream);
        write_pattern(&world.client, 0, 1000);
        stream_close(world.client.stream);
        /* Bytes and the end of file stay in the kernel. */
        for (int i = 0; i < 10; i++) {
            (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
        }
        assert_int_equal(world.server.datas, 0);
        assert_int_equal(world.server.closes, 0);
        stream_resume(world.server.stream);
        stream_pause(world.server.stream);
        (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
        assert_int_equal(world.server.datas, 0);
        stream_resume(world.server.stream);
        RUN_UNTIL(&world, world.server.closes == 1);
        check_pattern(&world.server, 1000);
        assert_int_equal(world.server.status, ERR_CLOSED);
        world_free(&world);
    }
}

/* ---- Closing ---- */

static void test_close_flushes(void **state)
{
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        struct world world;
        world_init(&world);
        if (tls == 1) {
            make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        }
        world_connect(&world);
        write_pattern(&world.client, 0, 5000000);
        world.client.busy = true;
        stream_close(world.client.stream);
        world.client.busy = false;
        assert_int_equal(stream_write(world.client.stream, SPAN_LIT("x")), ERR_CLOSED);
        RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
        check_pattern(&world.server, 5000000);
        assert_int_equal(world.client.status, ERR_OK);
        assert_int_equal(world.server.status, ERR_CLOSED);
        assert_string_equal(world.server.why, "The peer closed the connection.");
        world_free(&world);
    }
}

static void test_abort(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    world_connect(&world);
    write_pattern(&world.client, 0, 1000);
    write_pattern(&world.server, 0, 1000);
    world.client.busy = true;
    stream_abort(world.client.stream);
    stream_abort(world.client.stream);
    stream_close(world.client.stream);
    world.client.busy = false;
    RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
    assert_int_equal(world.client.status, ERR_OK);
    assert_int_equal(world.client.datas, 0);
    assert_int_equal(world.server.datas, 0);
    world_free(&world);
}

/* Ending a connection that is only being made, at each stage of it. */
static void test_abort_early(void **state)
{
    (void)state;
    for (int turns = 0; turns < 6; turns++) {
        for (int by_name = 0; by_name < 2; by_name++) {
            struct world world;
            world_init(&world);
            make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
            listen_on(&world, "127.0.0.1");
            dial(&world, by_name == 1 ? "many.heave.test" : "127.0.0.1", "localhost");
            for (int i = 0; i < turns && world.client.opens == 0; i++) {
                (void)uv_run(loop_uv(world.loop), UV_RUN_ONCE);
            }
            stream_close(world.client.stream);
            RUN_UNTIL(&world, world.client.closes == 1);
            assert_int_equal(world.client.status, ERR_OK);
            world_free(&world);
        }
    }
}

/* Every callback may close or abort. */
static void test_close_in_callbacks(void **state)
{
    (void)state;
    for (int reaction = CLOSE_IT; reaction <= ABORT_IT; reaction++) {
        for (int tls = 0; tls < 2; tls++) {
            for (int where = 0; where < 2; where++) {
                struct world world;
                world_init(&world);
                if (tls == 1) {
                    make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
                }
                enum reaction what = (enum reaction)reaction;
                *(where == 0 ? &world.server.on_open : &world.server.on_data) = what;
                listen_on(&world, "127.0.0.1");
                dial(&world, "127.0.0.1", "localhost");
                write_pattern(&world.client, 0, 100000);
                RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
                assert_int_equal(world.server.status, ERR_OK);
                assert_int_equal(world.server.datas, where);
                world_free(&world);
            }
        }
    }
}

/* "Busy, go away" to a connection that was just accepted, before its on_open. */
static void on_connection_busy(uv_stream_t *listener, int status)
{
    struct world *world = listener->data;
    on_connection(listener, status);
    assert_int_equal(stream_write(world->server.stream, SPAN_LIT("421 busy\r\n")), ERR_OK);
    stream_close(world->server.stream);
}

static void test_close_at_accept(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    listen_on(&world, "127.0.0.1");
    world.listener.stream.connection_cb = on_connection_busy;
    dial(&world, "127.0.0.1", NULL);
    RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
    assert_int_equal(world.server.opens, 0);
    assert_int_equal(world.client.status, ERR_CLOSED);
    assert_true(span_eq(buf_span(&world.client.got), SPAN_LIT("421 busy\r\n")));
    world_free(&world);
}

/* The reason why we close reaches a peer that is still sending: no reset destroys it. */
static void test_close_lingers(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    world_connect(&world);
    write_pattern(&world.client, 0, 1000000);
    world.server.on_data = CLOSE_IT;
    /* The answer stands before the peer's bytes have been read. */
    assert_int_equal(stream_write(world.server.stream, SPAN_LIT("552 too large\r\n")), ERR_OK);
    stream_pause(world.client.stream);
    RUN_UNTIL(&world, world.server.datas == 1);
    write_pattern(&world.client, 0, 1000000);
    for (int i = 0; i < 5; i++) {
        (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
    }
    stream_resume(world.client.stream);
    RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
    assert_true(span_eq(buf_span(&world.client.got), SPAN_LIT("552 too large\r\n")));
    assert_int_equal(world.client.status, ERR_CLOSED);
    assert_int_equal(world.server.status, ERR_OK);
    assert_int_equal(world.server.datas, 1);
    world_free(&world);
}

/* A peer that closes its half still gets what was pending for it. */
static void test_half_close(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    world_connect(&world);
    stream_pause(world.client.stream);
    write_pattern(&world.server, 0, 20000000);
    int fd = -1;
    (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
    /* The client's socket is found by its peer: the one whose port the server sees. */
    unsigned port = 0;
    assert_int_equal(sscanf(stream_peer(world.server.stream), "127.0.0.1:%u", &port), 1);
    for (int i = 3; i < 64 && fd < 0; i++) {
        struct sockaddr_in name = {.sin_family = AF_UNSPEC};
        socklen_t size = sizeof(name);
        if (getsockname(i, (struct sockaddr *)&name, &size) == 0 && name.sin_family == AF_INET &&
            ntohs(name.sin_port) == port) {
            fd = i;
        }
    }
    assert_true(fd >= 0);
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    for (int i = 0; i < 5; i++) {
        (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
    }
    assert_int_equal(world.server.closes, 0);
    stream_resume(world.client.stream);
    RUN_UNTIL(&world, world.client.closes == 1 && world.server.closes == 1);
    assert_int_equal(world.server.status, ERR_CLOSED);
    check_pattern(&world.client, 20000000);
    world_free(&world);
}

/* ---- Users ---- */

static size_t line_data(void *ctx, struct span bytes)
{
    struct side *side = ctx;
    size_t end = span_search(bytes, SPAN_LIT("\r\n"));
    if (end == bytes.len) {
        return 0;
    }
    stream_set_user(side->stream, &side_ops, side);
    return end + 2;
}

static const struct stream_ops line_ops = {
    .on_open = side_open,
    .on_data = line_data,
    .on_close = side_close,
};

/* What the first user leaves is shown to the second, without new bytes from the peer. */
static void test_set_user(void **state)
{
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        struct world world;
        world_init(&world);
        if (tls == 1) {
            make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        }
        world.server_ops = &line_ops;
        world_connect(&world);
        assert_int_equal(stream_write(world.client.stream, SPAN_LIT("UPGR")), ERR_OK);
        for (int i = 0; i < 4; i++) {
            (void)uv_run(loop_uv(world.loop), UV_RUN_NOWAIT);
        }
        assert_int_equal(stream_write(world.client.stream, SPAN_LIT("ADE\r\nrest")), ERR_OK);
        RUN_UNTIL(&world, buf_len(&world.server.got) == 4);
        assert_true(span_eq(buf_span(&world.server.got), SPAN_LIT("rest")));
        assert_int_equal(world.server.datas, 1);
        world_free(&world);
    }
}

/* Freeing the loop ends what is left, and says so. */
static void test_loop_free(void **state)
{
    (void)state;
    for (int turns = 0; turns < 6; turns++) {
        struct world world;
        world_init(&world);
        make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        listen_on(&world, "127.0.0.1");
        dial(&world, "localhost", "localhost");
        write_pattern(&world.client, 0, 1000000);
        stream_deadline(world.client.stream, 100000);
        for (int i = 0; i < turns; i++) {
            (void)uv_run(loop_uv(world.loop), UV_RUN_ONCE);
        }
        loop_free(&world.loop);
        assert_int_equal(world.client.closes, 1);
        assert_int_equal(world.client.status, ERR_OK);
        world_free(&world);
    }
}

/* ---- One write a turn ---- */

/* Many small writes of one turn arrive as one, and after the queue's commands of that turn. */
static void test_writes_coalesce(void **state)
{
    (void)state;
    for (int tls = 0; tls < 2; tls++) {
        struct world world;
        world_init(&world);
        if (tls == 1) {
            make_tls(&world.server_tls, &world.client_tls, certs.ca, true);
        }
        world_connect(&world);
        for (size_t i = 0; i < 1000; i++) {
            write_pattern(&world.client, i * 10, 10);
        }
        RUN_UNTIL(&world, buf_len(&world.server.got) == 10000);
        check_pattern(&world.server, 10000);
        assert_int_equal(world.server.datas, 1);
        world_free(&world);
    }
}

static int make_certs(void **state)
{
    (void)state;
    test_certs_make(&certs);
    return 0;
}

static int remove_certs(void **state)
{
    (void)state;
    test_certs_remove(&certs);
    return 0;
}

int main(void)
{
    (void)alarm(100); /* the watchdog: an event that never comes ends the program */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_echo_plain),      cmocka_unit_test(test_echo_tls),
        cmocka_unit_test(test_echo_ipv6),       cmocka_unit_test(test_echo_unix),
        cmocka_unit_test(test_connect_by_name), cmocka_unit_test(test_write_early),
        cmocka_unit_test(test_connect_refused), cmocka_unit_test(test_connect_invalid),
        cmocka_unit_test(test_connect_timeout), cmocka_unit_test(test_tls_refused),
        cmocka_unit_test(test_tls_unverified),  cmocka_unit_test(test_tls_garbage),
        cmocka_unit_test(test_starttls),        cmocka_unit_test(test_starttls_flushes_first),
        cmocka_unit_test(test_deadline),        cmocka_unit_test(test_deadline_closes),
        cmocka_unit_test(test_back_pressure),   cmocka_unit_test(test_give),
        cmocka_unit_test(test_unread_limit),    cmocka_unit_test(test_pause),
        cmocka_unit_test(test_close_flushes),   cmocka_unit_test(test_abort),
        cmocka_unit_test(test_abort_early),     cmocka_unit_test(test_close_in_callbacks),
        cmocka_unit_test(test_close_at_accept), cmocka_unit_test(test_close_lingers),
        cmocka_unit_test(test_half_close),      cmocka_unit_test(test_set_user),
        cmocka_unit_test(test_loop_free),       cmocka_unit_test(test_writes_coalesce),
    };
    return cmocka_run_group_tests(tests, make_certs, remove_certs);
}
