/* Who may send what: networks, sender patterns, credentials and their cache. */
#include "gateway/policy.h"

#include "gateway/base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

/* ---- Networks ---- */

static bool holds(const char *network, const char *address)
{
    struct policy_network parsed;
    assert_int_equal(policy_network_parse(network, &parsed, NULL), 0);
    return policy_network_holds(&parsed, address);
}

static void networks_hold_addresses(void **state)
{
    (void)state;
    assert_true(holds("10.0.0.0/8", "10.255.0.1"));
    assert_false(holds("10.0.0.0/8", "11.0.0.1"));
    assert_true(holds("10.20.16.0/20", "10.20.31.255"));
    assert_false(holds("10.20.16.0/20", "10.20.32.0"));
    assert_true(holds("192.0.2.1", "192.0.2.1"));
    assert_false(holds("192.0.2.1", "192.0.2.2"));
    assert_true(holds("192.0.2.1", "::ffff:192.0.2.1"));
    assert_true(holds("::ffff:192.0.2.0/120", "192.0.2.77"));
    assert_true(holds("2001:db8::/33", "2001:db8:7fff::1"));
    assert_false(holds("2001:db8::/33", "2001:db8:8000::1"));
    assert_true(holds("fe80::/10", "fe80::1%eth0"));
    assert_true(holds("0.0.0.0/0", "203.0.113.9"));
    assert_false(holds("0.0.0.0/0", "2001:db8::1"));
    assert_true(holds("::/0", "2001:db8::1"));
    assert_false(holds("::/0", "203.0.113.9"));
    assert_false(holds("0.0.0.0/0", "unix"));
    assert_false(holds("0.0.0.0/0", ""));
}

static void bad_networks_are_named(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "10.0.0.0/33",
                                      "10.0.0.0/",
                                      "10.0.0/8",
                                      "10.1.2.3/16",
                                      "::/129",
                                      "2001:db8::1/64",
                                      "example.com",
                                      "10.0.0.0/8/8",
                                      "10.0.0.0/-1",
                                      "fe80::1%eth0",
                                      "10.0.0.1/ 8"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct policy_network parsed;
        struct err err = {0};
        assert_int_equal(policy_network_parse(bad[i], &parsed, &err), ERR_INVAL);
        assert_non_null(strstr(err.text, bad[i]));
    }
}

static void the_longest_prefix_wins(void **state)
{
    (void)state;
    static const char *const wide[] = {"10.0.0.0/8", "192.168.0.0/16"};
    static const char *const narrow[] = {"10.20.0.0/16"};
    static const char *const same[] = {"10.0.0.0/8"};
    const struct policy_client_conf clients[] = {
        {.name = "wide", .networks = wide, .network_count = 2},
        {.name = "narrow", .networks = narrow, .network_count = 1},
        {.name = "same", .networks = same, .network_count = 1},
    };
    struct policy *policy = NULL;
    assert_int_equal(policy_new(clients, 3, &policy, NULL), 0);
    assert_string_equal(policy_by_network(policy, "10.20.3.4")->conf->name, "narrow");
    assert_string_equal(policy_by_network(policy, "::ffff:10.20.3.4")->conf->name, "narrow");
    assert_string_equal(policy_by_network(policy, "10.21.3.4")->conf->name, "wide");
    assert_int_equal(policy_by_network(policy, "192.168.1.1")->index, 0);
    assert_null(policy_by_network(policy, "172.16.0.1"));
    assert_null(policy_by_network(policy, "unix"));
    policy_unref(&policy);
    assert_null(policy);
}

/* ---- Senders ---- */

static bool allowed(const char *pattern, const char *address)
{
    const char *const from[] = {pattern};
    const struct policy_client_conf conf = {.name = "x", .from = from, .from_count = 1};
    struct policy *policy = NULL;
    assert_int_equal(policy_new(&conf, 1, &policy, NULL), 0);
    const struct policy_client client = {.conf = &conf};
    bool yes = policy_sender_allowed(&client, span_of(address));
    policy_unref(&policy);
    return yes;
}

static void sender_patterns(void **state)
{
    (void)state;
    assert_true(allowed("*@contoso.com", "a@contoso.com"));
    assert_true(allowed("*@contoso.com", "A.B@CONTOSO.com"));
    assert_false(allowed("*@contoso.com", "a@evil-contoso.com"));
    assert_false(allowed("*@contoso.com", "a@sub.contoso.com"));
    assert_false(allowed("*@contoso.com", "a@contoso.com.evil.test"));
    assert_true(allowed("*@*.contoso.com", "a@sub.contoso.com"));
    assert_true(allowed("*.contoso.com", "a@sub.contoso.com"));
    assert_false(allowed("*.contoso.com", "a@contoso.com"));
    assert_true(allowed("contoso.com", "a@Contoso.com"));
    assert_false(allowed("contoso.com", "a@evilcontoso.com"));
    assert_false(allowed("contoso.com", "contoso.com"));
    assert_true(allowed("scan@contoso.com", "Scan@contoso.com"));
    assert_false(allowed("scan@contoso.com", "scanner@contoso.com"));
    assert_true(allowed("scan-*@contoso.com", "scan-7@contoso.com"));
    assert_false(allowed("scan-*@contoso.com", "scan@contoso.com"));
    assert_true(allowed("*", "anybody@anywhere.test"));
    assert_true(allowed("scan@contoso.com", "")); /* bounces */
    assert_true(allowed("a*b*c@x.test", "aXXbXXbYYc@x.test"));
    assert_false(allowed("a*b*c@x.test", "aXXcXXc@x.test"));
    const struct policy_client_conf any = {.name = "any"};
    const struct policy_client client = {.conf = &any};
    assert_true(policy_sender_allowed(&client, SPAN_LIT("anybody@anywhere.test")));
}

/* ---- What policy_new refuses ---- */

static void refused(const struct policy_client_conf *clients, size_t count, const char *word)
{
    struct policy *policy = NULL;
    struct err err = {0};
    assert_int_equal(policy_new(clients, count, &policy, &err), ERR_INVAL);
    assert_null(policy);
    assert_non_null(strstr(err.text, word));
    assert_non_null(strstr(err.text, "\"zabbix\""));
}

static void mistakes_are_refused(void **state)
{
    (void)state;
    static const char *const hashes[] = {"secret", "$1$abc$0123456789012345678901",
                                         "",       "$apr1$abc$0123456789012345678901",
                                         "$y$",    "{SHA}0123456789"};
    for (size_t i = 0; i < sizeof hashes / sizeof hashes[0]; i++) {
        refused(&(struct policy_client_conf){.name = "zabbix", .password_hash = hashes[i]}, 1,
                "password_hash");
        refused(&(struct policy_client_conf){.name = "zabbix", .api_key_hash = hashes[i]}, 1,
                "api_key_hash");
    }
    static const char *const network[] = {"10.0.0.0/99"};
    refused(&(struct policy_client_conf){.name = "zabbix", .networks = network, .network_count = 1},
            1, "10.0.0.0/99");
    static const char *const patterns[] = {"", "a b@c.test", "a@b@c.test", "*****@c.test"};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        refused(
            &(struct policy_client_conf){.name = "zabbix", .from = &patterns[i], .from_count = 1},
            1, "sender pattern");
    }
    const struct policy_client_conf twins[] = {{.name = "a", .user = "u"},
                                               {.name = "zabbix", .user = "u"}};
    refused(twins, 2, "\"u\"");
    struct policy *policy = NULL;
    struct err err = {0};
    const struct policy_client_conf reserved = {.name = "network"};
    assert_int_equal(policy_new(&reserved, 1, &policy, &err), ERR_INVAL);
    assert_non_null(strstr(err.text, "is kept for"));
}

/* ---- Credentials ---- */

static char hash_bcrypt[100];
static char hash_sha512[200];
static char hash_yescrypt[200];
static char hash_other[200];

static struct policy_client_conf clients[] = {
    {.name = "none"},
    {.name = "bcrypt", .user = "b", .password_hash = hash_bcrypt},
    {.name = "sha512", .user = "s", .password_hash = hash_sha512},
    {.name = "yescrypt", .user = "y", .password_hash = hash_yescrypt, .api_key_hash = hash_other},
    {.name = "key", .api_key_hash = hash_yescrypt},
    {.name = "no password", .user = "n", .api_key_hash = hash_other},
};

struct answers {
    struct loop *loop;
    int wanted;
    int count;
    const struct policy_client *last;
};

static void on_answer(void *ctx, const struct policy_client *client)
{
    struct answers *a = ctx;
    a->last = client;
    a->count++;
    if (a->count == a->wanted) {
        loop_stop(a->loop);
    }
}

struct fixture {
    struct loop *loop;
    struct policy *policy;
    struct policy_cache *cache;
};

static void set_up(struct fixture *f)
{
    f->loop = loop_new("test");
    assert_int_equal(policy_new(clients, sizeof clients / sizeof clients[0], &f->policy, NULL), 0);
    f->cache = policy_cache_new(f->loop);
}

static void tear_down(struct fixture *f)
{
    policy_cache_free(&f->cache);
    policy_unref(&f->policy);
    loop_free(&f->loop);
}

static const char *check_password(struct fixture *f, const char *user, struct span password)
{
    struct answers a = {.loop = f->loop, .wanted = 1};
    struct policy_auth *auth = policy_auth_password(f->cache, f->policy, span_of(user), password,
                                                    on_answer, &a);
    assert_non_null(auth);
    assert_int_equal(a.count, 0); /* later */
    loop_run(f->loop);
    assert_int_equal(a.count, 1);
    return a.last != NULL ? a.last->conf->name : "-";
}

static const char *check_key(struct fixture *f, const char *key)
{
    struct answers a = {.loop = f->loop, .wanted = 1};
    assert_non_null(policy_auth_key(f->cache, f->policy, span_of(key), on_answer, &a));
    loop_run(f->loop);
    assert_int_equal(a.count, 1);
    return a.last != NULL ? a.last->conf->name : "-";
}

static void passwords_are_checked(void **state)
{
    (void)state;
    struct fixture f;
    set_up(&f);
    struct span good = SPAN_LIT("secret");
    for (int round = 0; round < 2; round++) { /* hashed, then from the cache */
        assert_string_equal(check_password(&f, "b", good), "bcrypt");
        assert_string_equal(check_password(&f, "s", good), "sha512");
        assert_string_equal(check_password(&f, "y", good), "yescrypt");
        assert_string_equal(check_password(&f, "b", SPAN_LIT("Secret")), "-");
        assert_string_equal(check_password(&f, "y", SPAN_LIT("other")), "-");
        assert_string_equal(check_password(&f, "n", SPAN_LIT("other")), "-");
        assert_string_equal(check_password(&f, "B", good), "-");
        assert_string_equal(check_password(&f, "", good), "-");
        assert_string_equal(check_password(&f, "b", SPAN_LIT("")), "-");
        assert_string_equal(check_password(&f, "b", SPAN_LIT("secret\0x")), "-");
    }
    /* user and password do not run into each other in the key of the cache */
    assert_string_equal(check_password(&f, "bs", SPAN_LIT("ecret")), "-");
    static char longest[600];
    memset(longest, 'x', sizeof longest);
    assert_string_equal(check_password(&f, "b", span_make(longest, sizeof longest)), "-");
    tear_down(&f);
}

static void keys_find_their_client(void **state)
{
    (void)state;
    struct fixture f;
    set_up(&f);
    for (int round = 0; round < 2; round++) {
        assert_string_equal(check_key(&f, "secret"), "key");
        assert_string_equal(check_key(&f, "other"), "yescrypt"); /* the first that has it */
        assert_string_equal(check_key(&f, "nothing"), "-");
    }
    /* a key is no password and a password no key */
    assert_string_equal(check_password(&f, "", SPAN_LIT("secret")), "-");
    tear_down(&f);
}

/* CPU time cannot be asserted on a busy machine; what can is that a thousand equal checks come back
 * in far less than a thousand hashes take. */
static void equal_checks_are_joined(void **state)
{
    (void)state;
    struct fixture f;
    set_up(&f);
    int64_t start = clock_mono_ms();
    assert_string_equal(check_password(&f, "y", SPAN_LIT("wrong")), "-");
    int64_t one = clock_mono_ms() - start;
    struct answers a = {.loop = f.loop, .wanted = 1000};
    start = clock_mono_ms();
    for (int i = 0; i < 1000; i++) {
        assert_non_null(policy_auth_password(f.cache, f.policy, SPAN_LIT("y"), SPAN_LIT("secret"),
                                             on_answer, &a));
    }
    loop_run(f.loop);
    assert_int_equal(a.count, 1000);
    assert_string_equal(a.last->conf->name, "yescrypt");
    assert_true(clock_mono_ms() - start < 100 * (one + 1));
    tear_down(&f);
}

static void cancelled_checks_do_not_answer(void **state)
{
    (void)state;
    struct fixture f;
    set_up(&f);
    struct answers never = {.loop = f.loop, .wanted = 1};
    struct policy_auth *queued[6];
    /* two run, the others wait their turn; each with its own password */
    for (int i = 0; i < 6; i++) {
        char password[2] = {(char)('a' + i), '\0'};
        queued[i] = policy_auth_password(f.cache, f.policy, SPAN_LIT("y"), span_of(password),
                                         on_answer, &never);
    }
    for (int i = 0; i < 6; i++) {
        policy_auth_cancel(&queued[i]);
        assert_null(queued[i]);
    }
    assert_string_equal(check_password(&f, "b", SPAN_LIT("secret")), "bcrypt");
    struct policy_auth *known = policy_auth_password(f.cache, f.policy, SPAN_LIT("b"),
                                                     SPAN_LIT("secret"), on_answer, &never);
    policy_auth_cancel(&known);
    policy_auth_cancel(&known);
    assert_string_equal(check_password(&f, "s", SPAN_LIT("secret")), "sha512");
    assert_int_equal(never.count, 0);
    /* and the cache may go while a hash runs */
    known = policy_auth_password(f.cache, f.policy, SPAN_LIT("y"), SPAN_LIT("last"), on_answer,
                                 &never);
    policy_auth_cancel(&known);
    tear_down(&f);
    assert_int_equal(never.count, 0);
}

static void a_new_policy_empties_the_cache(void **state)
{
    (void)state;
    struct fixture f;
    set_up(&f);
    assert_string_equal(check_password(&f, "b", SPAN_LIT("secret")), "bcrypt");
    static const struct policy_client_conf changed[] = {
        {.name = "changed", .user = "b", .password_hash = hash_other}};
    policy_unref(&f.policy);
    assert_int_equal(policy_new(changed, 1, &f.policy, NULL), 0);
    assert_string_equal(check_password(&f, "b", SPAN_LIT("secret")), "-");
    assert_string_equal(check_password(&f, "b", SPAN_LIT("other")), "changed");
    tear_down(&f);
}

static void hashes_are_made(void **state)
{
    (void)state;
    char one[200];
    char two[200];
    char small[10];
    assert_int_equal(policy_hash(SPAN_LIT("secret"), one, sizeof one), 0);
    assert_int_equal(policy_hash(SPAN_LIT("secret"), two, sizeof two), 0);
    assert_true(span_starts(span_of(one), SPAN_LIT("$y$")));
    assert_string_not_equal(one, two); /* salted */
    assert_int_equal(policy_hash(SPAN_LIT("secret"), small, sizeof small), ERR_IO);
    assert_int_equal(policy_hash(SPAN_LIT("sec\0ret"), one, sizeof one), ERR_IO);
}

/* Of "secret", made by other programs: htpasswd -nbB -C 5, openssl passwd -6 -salt saltsalt. */
static const char bcrypt_vector[] = "$2y$05$GsE9wiSX.iXgmZzpbYBH.uZL4QBNtDfIhd3Y4GfueT8TfItCUpqXS";
static const char sha512_vector[] =
    "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1";

static int make_hashes(void **state)
{
    (void)state;
    (void)snprintf(hash_bcrypt, sizeof hash_bcrypt, "%s", bcrypt_vector);
    (void)snprintf(hash_sha512, sizeof hash_sha512, "%s", sha512_vector);
    return policy_hash(SPAN_LIT("secret"), hash_yescrypt, sizeof hash_yescrypt) == 0 &&
                   policy_hash(SPAN_LIT("other"), hash_other, sizeof hash_other) == 0
               ? 0
               : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(networks_hold_addresses),
        cmocka_unit_test(bad_networks_are_named),
        cmocka_unit_test(the_longest_prefix_wins),
        cmocka_unit_test(sender_patterns),
        cmocka_unit_test(mistakes_are_refused),
        cmocka_unit_test(passwords_are_checked),
        cmocka_unit_test(keys_find_their_client),
        cmocka_unit_test(equal_checks_are_joined),
        cmocka_unit_test(cancelled_checks_do_not_answer),
        cmocka_unit_test(a_new_policy_empties_the_cache),
        cmocka_unit_test(hashes_are_made),
    };
    return cmocka_run_group_tests(tests, make_hashes, NULL);
}
