/* TLS contexts and engines, without sockets: two engines, or an engine and a bare libssl client,
 * whose wire bytes the test carries over. */
#include "gateway/base/tls.h"

#include "tests/lib/test_certs.h"

#include <openssl/ssl.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static int make_certs(void **state)
{
    static struct test_certs certs;
    test_certs_make(&certs);
    *state = &certs;
    return 0;
}

static int remove_certs(void **state)
{
    test_certs_remove(*state);
    return 0;
}

static struct tls_context *server_context(const struct test_certs *certs, enum tls_version min,
                                          bool offer_h2, const char *client_ca)
{
    const struct tls_server_conf conf = {
        .cert_file = certs->server_cert,
        .key_file = certs->server_key,
        .min_version = min,
        .client_ca_file = client_ca,
        .offer_h2 = offer_h2,
    };
    struct tls_context *context = NULL;
    struct err err = {.code = 0};
    if (tls_server_new(&conf, &context, &err) != ERR_OK) {
        fail_msg("%s", err.text);
    }
    return context;
}

static struct tls_context *client_context(const char *ca_file, bool verify,
                                          const struct test_certs *identity)
{
    const struct tls_client_conf conf = {
        .ca_file = ca_file,
        .verify = verify,
        .min_version = TLS_1_2,
        .cert_file = identity != NULL ? identity->client_cert : NULL,
        .key_file = identity != NULL ? identity->client_key : NULL,
    };
    struct tls_context *context = NULL;
    struct err err = {.code = 0};
    if (tls_client_new(&conf, &context, &err) != ERR_OK) {
        fail_msg("%s", err.text);
    }
    return context;
}

struct pair {
    struct tls_engine *client;
    struct tls_engine *server;
    int client_rc;
    int server_rc;
    struct err client_err;
    struct err server_err;
};

static void pair_open(struct pair *pair, struct tls_context *client, struct tls_context *server,
                      const char *host)
{
    *pair = (struct pair){.client_rc = STEP_WAIT, .server_rc = STEP_WAIT};
    assert_int_equal(tls_engine_new(client, host, &pair->client), ERR_OK);
    assert_int_equal(tls_engine_new(server, NULL, &pair->server), ERR_OK);
    tls_context_unref(&client);
    tls_context_unref(&server);
    assert_null(client);
}

static void pair_close(struct pair *pair)
{
    tls_engine_free(&pair->client);
    tls_engine_free(&pair->server);
    assert_null(pair->client);
}

/* Carries wire bytes over, `step` at a time, with a handshake step after each while one is wanted.
 * Returns how many there were. */
static size_t carry(struct tls_engine *from, struct tls_engine *to, size_t step, int *rc,
                    struct err *err)
{
    struct buf wire;
    buf_init(&wire, 10000000);
    assert_int_equal(tls_engine_drain(from, &wire), ERR_OK);
    size_t total = buf_len(&wire);
    while (buf_len(&wire) > 0) {
        struct span piece = buf_span(&wire);
        piece.len = piece.len < step ? piece.len : step;
        assert_int_equal(tls_engine_feed(to, piece), ERR_OK);
        buf_consume(&wire, piece.len);
        if (rc != NULL && *rc == STEP_WAIT) {
            *rc = tls_engine_handshake(to, err);
        }
    }
    buf_release(&wire);
    return total;
}

static void handshake(struct pair *pair, size_t step)
{
    pair->client_rc = tls_engine_handshake(pair->client, &pair->client_err);
    size_t moved = 1;
    while (moved > 0) {
        moved = carry(pair->client, pair->server, step, &pair->server_rc, &pair->server_err);
        moved += carry(pair->server, pair->client, step, &pair->client_rc, &pair->client_err);
    }
}

static void exchange(struct pair *pair, size_t len, size_t step)
{
    char *plain = mem_alloc(len);
    for (size_t i = 0; i < len; i++) {
        plain[i] = (char)(i * 7 % 251);
    }
    assert_int_equal(tls_engine_write(pair->client, span_make(plain, len)), ERR_OK);
    (void)carry(pair->client, pair->server, step, NULL, NULL);
    char *back = mem_alloc(len + 1);
    size_t got = 0;
    int rc = 1;
    while (rc > 0) {
        rc = tls_engine_read(pair->server, back + got, len + 1 - got);
        got += rc > 0 ? (size_t)rc : 0;
    }
    assert_int_equal(rc, 0);
    assert_int_equal(got, len);
    assert_memory_equal(back, plain, len);
    mem_free(plain);
    mem_free(back);
}

static void test_handshake(void **state)
{
    const struct test_certs *certs = *state;
    static const size_t steps[] = {1, 7, 1000000};
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct pair pair;
        pair_open(&pair, client_context(certs->ca, true, NULL),
                  server_context(certs, TLS_1_2, false, NULL), "localhost");
        handshake(&pair, steps[i]);
        assert_int_equal(pair.client_rc, STEP_DONE);
        assert_int_equal(pair.server_rc, STEP_DONE);
        assert_string_equal(tls_engine_version(pair.client), "TLSv1.3");
        assert_string_equal(tls_engine_version(pair.server), "TLSv1.3");
        assert_memory_equal(tls_engine_cipher(pair.server), "TLS_", 4);
        assert_string_equal(tls_engine_alpn(pair.server), "");
        assert_string_equal(tls_engine_peer_subject(pair.server), "");
        exchange(&pair, 1, steps[i]);
        exchange(&pair, 100000, steps[i]);
        tls_engine_shutdown(pair.client);
        (void)carry(pair.client, pair.server, steps[i], NULL, NULL);
        char room[10];
        assert_int_equal(tls_engine_read(pair.server, room, sizeof(room)), ERR_CLOSED);
        assert_int_equal(tls_engine_read(pair.server, room, sizeof(room)), ERR_CLOSED);
        pair_close(&pair);
    }
}

static void test_broken_record(void **state)
{
    const struct test_certs *certs = *state;
    struct pair pair;
    pair_open(&pair, client_context(certs->ca, true, NULL),
              server_context(certs, TLS_1_2, false, NULL), "localhost");
    handshake(&pair, 1000000);
    assert_int_equal(tls_engine_write(pair.client, SPAN_LIT("hello")), ERR_OK);
    struct buf wire;
    buf_init(&wire, 1000);
    assert_int_equal(tls_engine_drain(pair.client, &wire), ERR_OK);
    wire.data[wire.end - 1] ^= 1;
    assert_int_equal(tls_engine_feed(pair.server, buf_span(&wire)), ERR_OK);
    char room[10];
    assert_int_equal(tls_engine_read(pair.server, room, sizeof(room)), ERR_PROTO);
    assert_int_equal(tls_engine_write(pair.server, SPAN_LIT("x")), ERR_PROTO);
    buf_release(&wire);
    pair_close(&pair);
}

static void check_refused(const struct test_certs *certs, const char *ca, const char *host,
                          const char *sentence)
{
    struct pair pair;
    pair_open(&pair, client_context(ca, true, NULL), server_context(certs, TLS_1_2, false, NULL),
              host);
    handshake(&pair, 1000000);
    assert_int_equal(pair.client_rc, ERR_DENIED);
    assert_string_equal(pair.client_err.text, sentence);
    /* The alert tells the other side. */
    assert_int_equal(pair.server_rc == STEP_DONE ? ERR_PROTO : pair.server_rc, ERR_PROTO);
    pair_close(&pair);
}

static void test_certificate_refused(void **state)
{
    const struct test_certs *certs = *state;
    check_refused(certs, certs->alien, "localhost",
                  "The certificate of localhost is not trusted: unable to get local issuer "
                  "certificate.");
    check_refused(certs, certs->ca, "mail.example",
                  "The certificate of mail.example was issued for another name.");
    check_refused(certs, certs->ca, "127.0.0.2",
                  "The certificate of 127.0.0.2 was issued for another name.");
    check_refused(certs, certs->ca, "a.b.heave.test",
                  "The certificate of a.b.heave.test was issued for another name.");
}

static void check_accepted(const struct test_certs *certs, const char *ca, bool verify,
                           const char *host)
{
    struct pair pair;
    pair_open(&pair, client_context(ca, verify, NULL), server_context(certs, TLS_1_3, false, NULL),
              host);
    handshake(&pair, 1000000);
    assert_int_equal(pair.client_rc, STEP_DONE);
    assert_int_equal(pair.server_rc, STEP_DONE);
    pair_close(&pair);
}

static void test_certificate_accepted(void **state)
{
    const struct test_certs *certs = *state;
    check_accepted(certs, certs->ca, true, "127.0.0.1");
    check_accepted(certs, certs->ca, true, "::1");
    check_accepted(certs, certs->ca, true, "LocalHost.");
    check_accepted(certs, certs->ca, true, "mx.heave.test");
    check_accepted(certs, certs->alien, false, "mail.example");
    check_accepted(certs, certs->alien, false, NULL);
    struct tls_context *client = client_context(certs->ca, true, NULL);
    struct tls_engine *engine = NULL;
    assert_int_equal(tls_engine_new(client, NULL, &engine), ERR_INVAL);
    assert_int_equal(tls_engine_new(client, "", &engine), ERR_INVAL);
    assert_null(engine);
    tls_context_unref(&client);
}

static void test_client_certificate(void **state)
{
    const struct test_certs *certs = *state;
    struct pair pair;
    pair_open(&pair, client_context(certs->ca, true, certs),
              server_context(certs, TLS_1_2, false, certs->ca), "localhost");
    handshake(&pair, 1000000);
    assert_int_equal(pair.server_rc, STEP_DONE);
    assert_string_equal(tls_engine_peer_subject(pair.server), "CN=device 7");
    pair_close(&pair);

    pair_open(&pair, client_context(certs->ca, true, NULL),
              server_context(certs, TLS_1_2, false, certs->ca), "localhost");
    handshake(&pair, 1000000);
    assert_int_equal(pair.server_rc, ERR_PROTO);
    pair_close(&pair);

    pair_open(&pair, client_context(certs->ca, true, certs),
              server_context(certs, TLS_1_2, false, certs->alien), "localhost");
    handshake(&pair, 1000000);
    assert_int_equal(pair.server_rc, ERR_DENIED);
    assert_string_equal(pair.server_err.text,
                        "The certificate of the client is not trusted: unable to "
                        "get local issuer certificate.");
    pair_close(&pair);
}

/* ---- Against a bare libssl client, which can be made to do what ours does not ---- */

struct bare {
    SSL_CTX *context;
    SSL *ssl;
};

static void bare_open(struct bare *bare, int version, const char *alpn)
{
    bare->context = SSL_CTX_new(TLS_client_method());
    assert_non_null(bare->context);
    assert_int_equal(SSL_CTX_set_min_proto_version(bare->context, version), 1);
    assert_int_equal(SSL_CTX_set_max_proto_version(bare->context, version), 1);
    assert_int_equal(SSL_CTX_set_cipher_list(bare->context, "DEFAULT@SECLEVEL=0"), 1);
    bare->ssl = SSL_new(bare->context);
    assert_non_null(bare->ssl);
    SSL_set_bio(bare->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_connect_state(bare->ssl);
    if (alpn != NULL) {
        assert_int_equal(
            SSL_set_alpn_protos(bare->ssl, (const unsigned char *)alpn, (unsigned)strlen(alpn)), 0);
    }
}

static void bare_close(struct bare *bare)
{
    SSL_free(bare->ssl);
    SSL_CTX_free(bare->context);
}

/* Returns what the server's handshake came to. */
static int bare_handshake(struct bare *bare, struct tls_engine *server, struct err *err)
{
    int rc = STEP_WAIT;
    for (int round = 0; round < 10; round++) {
        (void)SSL_do_handshake(bare->ssl);
        char room[20000];
        int len = BIO_read(SSL_get_wbio(bare->ssl), room, sizeof(room));
        if (len > 0) {
            assert_int_equal(tls_engine_feed(server, span_make(room, (size_t)len)), ERR_OK);
        }
        if (rc == STEP_WAIT) {
            rc = tls_engine_handshake(server, err);
        }
        struct buf wire;
        buf_init(&wire, 100000);
        assert_int_equal(tls_engine_drain(server, &wire), ERR_OK);
        if (buf_len(&wire) > 0) {
            struct span bytes = buf_span(&wire);
            assert_int_equal(BIO_write(SSL_get_rbio(bare->ssl), bytes.data, (int)bytes.len),
                             (int)bytes.len);
        }
        buf_release(&wire);
    }
    return rc;
}

static void check_bare(const struct test_certs *certs, enum tls_version min, bool offer_h2,
                       int client_version, const char *client_alpn, int expected_rc,
                       const char *expected_version, const char *expected_alpn)
{
    struct tls_context *context = server_context(certs, min, offer_h2, NULL);
    struct tls_engine *server = NULL;
    assert_int_equal(tls_engine_new(context, NULL, &server), ERR_OK);
    struct bare bare;
    bare_open(&bare, client_version, client_alpn);
    struct err err = {.code = 0};
    assert_int_equal(bare_handshake(&bare, server, &err), expected_rc);
    if (expected_rc == STEP_DONE) {
        assert_string_equal(tls_engine_version(server), expected_version);
        assert_string_equal(tls_engine_alpn(server), expected_alpn);
    } else {
        assert_memory_equal(err.text, "The TLS handshake failed: ", 26);
    }
    bare_close(&bare);
    tls_engine_free(&server);
    tls_context_unref(&context);
}

static void test_versions(void **state)
{
    const struct test_certs *certs = *state;
    check_bare(certs, TLS_1_0, false, TLS1_VERSION, NULL, STEP_DONE, "TLSv1", "");
    check_bare(certs, TLS_1_0, false, TLS1_3_VERSION, NULL, STEP_DONE, "TLSv1.3", "");
    check_bare(certs, TLS_1_1, false, TLS1_1_VERSION, NULL, STEP_DONE, "TLSv1.1", "");
    check_bare(certs, TLS_1_1, false, TLS1_VERSION, NULL, ERR_PROTO, NULL, NULL);
    check_bare(certs, TLS_1_2, false, TLS1_2_VERSION, NULL, STEP_DONE, "TLSv1.2", "");
    check_bare(certs, TLS_1_2, false, TLS1_1_VERSION, NULL, ERR_PROTO, NULL, NULL);
    check_bare(certs, TLS_1_3, false, TLS1_2_VERSION, NULL, ERR_PROTO, NULL, NULL);
}

static void test_alpn(void **state)
{
    const struct test_certs *certs = *state;
    const char *both = "\x08http/1.1\x02h2";
    const char *h2 = "\x02h2";
    const char *foreign = "\x04spdy";
    check_bare(certs, TLS_1_2, true, TLS1_3_VERSION, both, STEP_DONE, "TLSv1.3", "h2");
    check_bare(certs, TLS_1_2, false, TLS1_3_VERSION, both, STEP_DONE, "TLSv1.3", "http/1.1");
    check_bare(certs, TLS_1_2, false, TLS1_3_VERSION, h2, STEP_DONE, "TLSv1.3", "");
    check_bare(certs, TLS_1_2, true, TLS1_2_VERSION, foreign, STEP_DONE, "TLSv1.2", "");
    check_bare(certs, TLS_1_2, true, TLS1_2_VERSION, NULL, STEP_DONE, "TLSv1.2", "");
}

static void test_garbage(void **state)
{
    const struct test_certs *certs = *state;
    struct tls_context *context = server_context(certs, TLS_1_2, false, NULL);
    struct tls_engine *server = NULL;
    assert_int_equal(tls_engine_new(context, NULL, &server), ERR_OK);
    assert_int_equal(tls_engine_feed(server, SPAN_LIT("GET / HTTP/1.1\r\n\r\n")), ERR_OK);
    struct err err = {.code = 0};
    assert_int_equal(tls_engine_handshake(server, &err), ERR_PROTO);
    assert_string_equal(err.text, "The TLS handshake failed: http request.");
    tls_engine_shutdown(server);
    tls_engine_free(&server);
    tls_context_unref(&context);
}

/* ---- Loading ---- */

static void check_load(const char *cert, const char *key, const char *client_ca, int code,
                       const char *part)
{
    const struct tls_server_conf conf = {
        .cert_file = cert,
        .key_file = key,
        .client_ca_file = client_ca,
        .min_version = TLS_1_2,
    };
    struct tls_context *context = NULL;
    struct err err = {.code = 0};
    assert_int_equal(tls_server_new(&conf, &context, &err), code);
    assert_null(context);
    assert_int_equal(err.code, code);
    assert_non_null(strstr(err.text, part));
}

static void test_load_errors(void **state)
{
    const struct test_certs *certs = *state;
    check_load("/nowhere/a.pem", certs->server_key, NULL, ERR_IO,
               "The certificate file /nowhere/a.pem cannot be read: No such file");
    check_load(certs->server_cert, "/nowhere/a.key", NULL, ERR_IO, "/nowhere/a.key");
    check_load(certs->server_key, certs->server_key, NULL, ERR_INVAL, "no usable PEM certificate");
    check_load(certs->server_cert, certs->server_cert, NULL, ERR_INVAL, "no usable PEM key");
    check_load(certs->server_cert, certs->client_key, NULL, ERR_INVAL, "does not belong to");
    check_load(certs->server_cert, certs->locked_key, NULL, ERR_INVAL, certs->locked_key);
    check_load(certs->server_cert, NULL, NULL, ERR_INVAL, "has no key file");
    check_load(certs->server_cert, certs->server_key, "/nowhere/ca.pem", ERR_IO, "/nowhere/ca.pem");
    check_load(certs->server_cert, certs->server_key, certs->server_key, ERR_INVAL,
               "no usable PEM certificates");
    const struct tls_client_conf conf = {.ca_file = "/nowhere/ca.pem", .min_version = TLS_1_2};
    struct tls_context *context = NULL;
    struct err err = {.code = 0};
    assert_int_equal(tls_client_new(&conf, &context, &err), ERR_IO);
    assert_int_equal(tls_client_new(&conf, &context, NULL), ERR_IO);
}

static void test_references(void **state)
{
    const struct test_certs *certs = *state;
    struct tls_context *context = server_context(certs, TLS_1_2, false, NULL);
    struct tls_context *second = tls_context_ref(context);
    assert_ptr_equal(context, second);
    struct tls_engine *engine = NULL;
    assert_int_equal(tls_engine_new(context, NULL, &engine), ERR_OK);
    tls_context_unref(&context);
    tls_context_unref(&second);
    tls_context_unref(&second);
    /* The engine's own reference keeps it working. */
    struct err err;
    assert_int_equal(tls_engine_handshake(engine, &err), STEP_WAIT);
    tls_engine_free(&engine);
}

static void test_sha256(void **state)
{
    (void)state;
    /* FIPS 180-2, appendix B.1. */
    static const unsigned char abc[32] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
                                          0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
                                          0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
                                          0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    unsigned char digest[32];
    tls_sha256(SPAN_LIT("abc"), digest);
    assert_memory_equal(digest, abc, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_handshake),
        cmocka_unit_test(test_broken_record),
        cmocka_unit_test(test_certificate_refused),
        cmocka_unit_test(test_certificate_accepted),
        cmocka_unit_test(test_client_certificate),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_alpn),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_load_errors),
        cmocka_unit_test(test_references),
        cmocka_unit_test(test_sha256),
    };
    return cmocka_run_group_tests(tests, make_certs, remove_certs);
}
