/* Unit tests of gateway/conf: what is refused, and where the report says it stands. Through conf.h.
 */
#include "tests/unit/gateway_conf_rig.h"

/* ---- Mistakes and their places ---- */

static const struct bad_case bad_cases[] = {
    {BASE "hostnam: x\n", 4, 1, "hostnam", "did you mean \"hostname\"?"},
    {BASE "queue: {durabilty: fsync}\n", 4, 9, "queue.durabilty", "did you mean \"durability\"?"},
    {BASE "queue:\n  max_byte: 4GiB\n", 5, 3, "queue.max_byte", "did you mean \"max_bytes\"?"},
    {BASE "log: {zzzzzz: 1}\n", 4, 7, "log.zzzzzz", "one of level, format, addresses"},
    {BASE "queue: {shards: 0}\n", 4, 17, "queue.shards", "1 to 32"},
    {BASE "queue: {shards: many}\n", 4, 17, "queue.shards", "a whole number"},
    {BASE "queue: {lease: 5 minutes}\n", 4, 16, "queue.lease", "a duration such as"},
    {BASE "queue: {lease: 2h}\n", 4, 16, "queue.lease", "1s to 1h"},
    {BASE "queue: {max_bytes: 4Gb}\n", 4, 20, "queue.max_bytes", "a size such as"},
    {BASE "queue: {max_bytes: 1KiB}\n", 4, 20, "queue.max_bytes", "1MiB to"},
    {BASE "queue: {durability: sometimes}\n", 4, 21, "queue.durability",
     "fsync, replicated or memory"},
    {BASE "queue: {durability: replicated}\n", 4, 21, "queue.durability", "has no replicas"},
    {BASE "queue: {password: x}\n", 4, 19, "queue.password", "no meaning with the embedded"},
    {BASE "queue: [a]\n", 4, 8, "queue", "cannot stand here"},
    {BASE "queue: {shards: [1]}\n", 4, 17, "queue.shards", "not a list"},
    {BASE "queue: {shards: }\n", 4, 17, "queue.shards", "the value is empty"},
    {BASE "hostname: \"\"\n", 4, 11, "hostname", "the value is empty"},
    {BASE "hostname: a_b\n", 4, 11, "hostname", "no host name"},
    {BASE "hostname: a\nhostname: b\n", 5, 1, "hostname", "a second time; the first is on line 4"},
    {BASE "roles: []\n", 4, 8, "roles", "nothing to do"},
    {BASE "roles: ingest\n", 4, 8, "roles", "a list belongs here"},
    {BASE "roles: [ingest, sleep]\n", 4, 17, "roles.1", "ingest or dispatch"},
    {BASE "tls: {cert_file: missing.crt, key_file: tls.key}\n", 4, 18, "tls.cert_file",
     "No such file"},
    {BASE "tls: {cert_file: ., key_file: tls.key}\n", 4, 18, "tls.cert_file", "is not a file"},
    {BASE "tls: {cert_file: tls.crt}\n", 4, 18, "tls.cert_file", "go together"},
    {BASE "tls: {min_version: \"1.4\"}\n", 4, 20, "tls.min_version", "1.0, 1.1, 1.2 or 1.3"},
    {BASE "lanes: {alert: {retry: \"5s*, 15s\"}}\n", 4, 24, "lanes.alert.retry",
     "a star after the last"},
    {BASE "lanes: {alert: {retry: \"5s,,15s\"}}\n", 4, 24, "lanes.alert.retry",
     "a star after the last"},
    {BASE "lanes: {alert: {share: 50}}\n", 4, 24, "lanes.alert.share", "a percentage"},
    {BASE "lanes: {alert: {share: 0%}}\n", 4, 24, "lanes.alert.share", "1% to 100%"},
    {BASE "lanes: {\"a|b\": {share: 5%}}\n", 4, 9, "lanes.a|b", "the name cannot be used"},
    {BASE "credentials: {e: {type: managed_identity}}\n", 4, 25, "credentials.e.type",
     "type managed_identity is not supported by this version"},
    {BASE "credentials: {e: {type: client_certificate, certificate_file: x}}\n", 4, 45,
     "credentials.e.certificate_file", "certificate_file is not supported by this version"},
    {BASE "credentials: {e: {type: client_secret, tenant_id: t, client_id: c}}\n", 4, 18,
     "credentials.e", "client_secret is missing"},
    {BASE
     "credentials: {e: {type: client_secret, tenant_id: t, client_id: c, client_secret: s, authority: \"http://x\"}}\n",
     4, 97, "credentials.e.authority", "https://"},
    {BASE "clients: [{user: a, password_hash: \"$y$aaaaaaaa\"}]\n", 4, 11, "clients.0",
     "name is missing"},
    {BASE "clients: [{name: a}]\n", 4, 18, "clients.0.name", "how this client is recognised"},
    {BASE "clients: [{name: a, user: u}]\n", 4, 27, "clients.0.user", "go together"},
    {BASE "clients: [{name: a, networks: [10.0.0.0/33]}]\n", 4, 32, "clients.0.networks.0",
     "addresses or networks"},
    {BASE "clients: [{name: a, networks: [10.0.0.1/8]}]\n", 4, 32, "clients.0.networks.0",
     "address bits beyond"},
    {BACKENDS ROUTES "listeners: [{protocol: smtp, bind: \"*:25\", networks: [10.0.0.1/8]}]\n", 3,
     55, "listeners.0.networks.0", "address bits beyond"},
    {BASE "clients: [{name: a, networks: [1::1], from: [\"@x\"]}]\n", 4, 46, "clients.0.from.0",
     "sender patterns"},
    {BASE "clients: [{name: a, api_key_hash: plain-password}]\n", 4, 35, "clients.0.api_key_hash",
     "crypt(3)"},
    {BASE "clients: [{name: a, networks: [\"::1\"]}, {name: a, networks: [\"::2\"]}]\n", 4, 48,
     "clients.1.name", "another client has the name"},
    {BASE "clients: [{name: a, networks: [\"::1\"], lane: alerts}]\n", 4, 46, "clients.0.lane",
     "did you mean \"alert\"?"},
    {BASE "clients: [{name: a, networks: [\"::1\"], rate: 600/m}]\n", 4, 40, "clients.0.rate",
     "rate is not supported by this version"},
    {BASE "clients: [{name: a, networks: [\"::1\"], daily_recipients: 5}]\n", 4, 40,
     "clients.0.daily_recipients", "not supported by this version"},
    {BASE "clients: [{name: a, access_key_file: x}]\n", 4, 21, "clients.0.access_key_file",
     "not supported by this version"},
    {BASE "queue: {redis: \"sentinel://a,b,c\"}\n", 4, 16, "queue.redis",
     "the name of the master is missing"},
    {BASE "queue: {redis: \"sentinel://a,,c/m\"}\n", 4, 16, "queue.redis",
     "each host is NAME, NAME:PORT or [IPv6]:PORT"},
    {BASE "queue: {redis: \"cluster://a,b,c/1\"}\n", 4, 16, "queue.redis",
     "a Redis Cluster has database 0 alone"},
    {BASE "queue: {redis: \"cluster://a:0x\"}\n", 4, 16, "queue.redis", "each host is NAME"},
    {BASE "queue: {redis: \"redis://a,b\"}\n", 4, 16, "queue.redis", "several hosts are for"},
    {BASE "queue: {redis: \"unix://host/path\"}\n", 4, 16, "queue.redis",
     "a Unix socket is given as unix:///path"},
    {BASE "queue: {redis: \"unix:///p?database=2\"}\n", 4, 16, "queue.redis", "only ?db=NUMBER"},
    {BASE "queue: {redis: \"unix:///p\", tls: true}\n", 4, 34, "queue.tls", "has no TLS"},
    {BASE "queue: {redis: \"redis://h\", cert_file: tls.crt}\n", 4, 40, "queue.cert_file",
     "cert_file has no meaning without TLS"},
    {BASE "queue: {redis: \"rediss://h\", key_file: tls.key}\n", 4, 40, "queue.key_file",
     "needs cert_file and key_file"},
    {BASE "queue: {redis: \"redis://h\", sentinel_user: u}\n", 4, 44, "queue.sentinel_user",
     "sentinel_user has no meaning without sentinel://"},
    {BASE "queue: {redis: \"redis://h\", replicas: 2}\n", 4, 39, "queue.replicas",
     "replicas has no meaning without durability: replicated"},
    {BASE "queue: {tls: true}\n", 4, 14, "queue.tls", "with the embedded Redis server"},
    {BACKENDS ROUTES "listeners: [{protocol: http, bind: \"x:y\", tls: starttls}]\n", 3, 48,
     "listeners.0.tls", "starttls is for smtp"},
    {BACKENDS ROUTES "listeners: [{protocol: http, bind: \"1.2.3.4\"}]\n", 3, 36,
     "listeners.0.bind", "address and port"},
    {BACKENDS ROUTES "listeners: [{protocol: smtp, bind: \"*:25\", tls: starttls}]\n", 3, 49,
     "listeners.0.tls", "needs a certificate"},
    {BACKENDS ROUTES "listeners: [{protocol: smtp, bind: \"*:25\", auth: required}]\n", 3, 50,
     "listeners.0.auth", "nobody could log in"},
    {BACKENDS ROUTES "listeners: [{protocol: http, bind: \"*:25\", networks: [10.0.0.1]}]\n", 3, 44,
     "listeners.0.networks", "networks does not apply to http"},
    {BACKENDS ROUTES
     "listeners: [{protocol: smtp, bind: \"*:25\"}, {protocol: http, bind: \"*:25\"}]\n",
     3, 68, "listeners.1.bind", "another listener"},
    {BACKENDS ROUTES "listeners: [{protocol: admin, bind: \"*:25\"}]\n", 3, 12, "listeners",
     "needs a listener"},
    {BACKENDS ROUTES "listeners: [smtp]\n", 3, 13, "listeners.0", "a section of keys"},
    {BACKENDS ROUTES "listeners: [{bind: \"*:25\"}]\n", 3, 13, "listeners.0",
     "protocol is missing"},
    {LISTENERS ROUTES "backends: {b: {type: acs}}\n", 3, 15, "backends.b", "endpoint is missing"},
    {LISTENERS ROUTES "backends: {b: {type: acs, access_key: \"?\"}}\n", 3, 39,
     "backends.b.access_key", "base64"},
    {LISTENERS ROUTES "backends: {b: {type: hve, accounts: []}}\n", 3, 37, "backends.b.accounts",
     "the list is empty"},
    {LISTENERS ROUTES "backends: {b: {type: hve, accounts: [{user: a@b.c}]}}\n", 3, 38,
     "backends.b.accounts.0", "password is missing"},
    {LISTENERS ROUTES "backends: {b: {type: smtp, host: h, auth: xoauth2}}\n", 3, 43,
     "backends.b.auth", "auth xoauth2 is not supported by this version"},
    {LISTENERS ROUTES "backends: {b: {type: smtp, host: h, auth: login}}\n", 3, 43,
     "backends.b.auth", "no user to log in"},
    {LISTENERS ROUTES "backends: {b: {type: smtp}}\n", 3, 15, "backends.b", "host is missing"},
    {LISTENERS ROUTES "backends: {b: {type: smtp, host: h, mailboxes: [a@b.c]}}\n", 3, 37,
     "backends.b.mailboxes", "mailboxes does not apply to smtp"},
    {LISTENERS ROUTES "backends: {b: {type: graph, credential: nobody, mailboxes: [a@b.c]}}\n", 3,
     41, "backends.b.credential", "there is no credential \"nobody\""},
    {LISTENERS ROUTES "backends: {b: {type: smtp, host: h, recipients_per_message: 51}}\n", 3, 61,
     "backends.b.recipients_per_message", "1 to 50"},
    {LISTENERS ROUTES "backends: {b: {type: smtp, host: h, rates: [30]}}\n", 3, 45,
     "backends.b.rates.0", "a list of rates"},
    {LISTENERS BACKENDS "routes: [{via: [asc]}]\n", 3, 17, "routes.0.via.0",
     "did you mean \"acs\"?"},
    {LISTENERS BACKENDS "routes: [{via: [acs, acs]}]\n", 3, 22, "routes.0.via.1", "twice"},
    {LISTENERS BACKENDS "routes: [{via: []}]\n", 3, 16, "routes.0.via", "the list is empty"},
    {LISTENERS BACKENDS "routes: [{}]\n", 3, 10, "routes.0", "via is missing"},
    {LISTENERS BACKENDS "routes: [{match: {recipient: internal}, via: [acs]}]\n", 3, 18,
     "routes.0.match", "accepted_domains"},
    {LISTENERS BACKENDS "routes: [{match: {client: nobody}, via: [acs]}]\n", 3, 27,
     "routes.0.match.client", "there is no client"},
    {LISTENERS BACKENDS "routes:\n", 3, 8, "routes", "no recipient has a way out"},
    {LISTENERS BACKENDS "routes: &a [{via: [acs]}]\nclients: *a\n", 4, 10, "", "aliases"},
    {"a: b\n---\nc: d\n", 2, 1, "", "second document"},
    {"- a\n", 1, 1, "", "no configuration"},
    {"", 1, 1, "", "the file is empty"},
    {"# nothing\n", 1, 1, "", "the file is empty"},
    {"a: [b\n", 2, 1, "", "not valid YAML"},
    {"a: \"\xff\"\n", 1, 1, "", "not valid YAML"},
    {"? [a]\n: b\n", 1, 3, "", "a key must be a text"},
};

static void mistakes_have_places(void **state)
{
    struct rig *rig = *state;
    size_t failures = 0;
    for (size_t i = 0; i < LENGTH(bad_cases); i++) {
        const struct bad_case *c = &bad_cases[i];
        assert_int_equal(load(rig, c->text), ERR_INVAL);
        assert_null(rig->conf);
        if (!find_mistake(rig, c->line, c->column, c->path, c->fragment)) {
            print_report(rig);
            print_error("no mistake at %zu:%zu %s with \"%s\"\n", c->line, c->column, c->path,
                        c->fragment);
            failures++;
        }
    }
    assert_int_equal(failures, 0);
}

static void all_mistakes_in_one_run(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(
        load(rig,
             "hostnam: x\n"
             "queue: {shards: 64, lease: soon}\n"
             "listeners:\n"
             "  - {protocol: smtp, bind: \"*:25\", auht: off}\n"
             "backends:\n"
             "  acs: {type: acs, endpoint: \"https://x\", access_key: aGVhdmU=, sender: a@b.test}\n"
             "routes: [{via: [acz]}]\n"
             "clients: [{name: a, networks: [x], lane: fast}]\n"),
        ERR_INVAL);
    has_mistake(rig, 1, 1, "hostnam", "hostname");
    has_mistake(rig, 2, 17, "queue.shards", "too large");
    has_mistake(rig, 2, 28, "queue.lease", "duration");
    has_mistake(rig, 4, 36, "listeners.0.auht", "\"auth\"");
    has_mistake(rig, 7, 17, "routes.0.via.0", "\"acs\"");
    has_mistake(rig, 8, 32, "clients.0.networks.0", "networks");
    has_mistake(rig, 8, 42, "clients.0.lane", "there is no lane \"fast\"");
    assert_int_equal(rig->report.count, 7);
    for (size_t i = 1; i < rig->report.count; i++) {
        assert_true(rig->report.mistakes[i - 1].line <= rig->report.mistakes[i].line);
    }
}

static void report_forms(void **state)
{
    struct rig *rig = *state;
    assert_int_equal(load(rig, BASE "queue: {lease: soon}\n"), ERR_INVAL);
    struct buf text;
    buf_init(&text, 65536);
    assert_int_equal(conf_report_print(&rig->report, &text), ERR_OK);
    char wanted[400];
    (void)snprintf(
        wanted, sizeof wanted,
        "%s:4:16: queue.lease: \"soon\" cannot be used here (expected a duration such as 500ms, 30s, 15m, 6h "
        "or 3d)\n",
        rig->file);
    assert_string_equal(buf_text(&text), wanted);
    buf_reset(&text);
    assert_int_equal(conf_report_print_json(&rig->report, &text), ERR_OK);
    json_t *json = json_loadb(buf_span(&text).data, buf_len(&text), 0, NULL);
    assert_non_null(json);
    assert_true(json_is_false(json_object_get(json, "ok")));
    const json_t *first = json_array_get(json_object_get(json, "mistakes"), 0);
    assert_int_equal(json_integer_value(json_object_get(first, "line")), 4);
    assert_int_equal(json_integer_value(json_object_get(first, "column")), 16);
    assert_string_equal(json_string_value(json_object_get(first, "path")), "queue.lease");
    json_decref(json);
    buf_release(&text);
}

static void too_many_mistakes_are_cut(void **state)
{
    struct rig *rig = *state;
    struct buf text;
    buf_init(&text, (size_t)1 << 20);
    for (int i = 0; i < 900; i++) {
        assert_int_equal(buf_printf(&text, "unknown%d: 1\n", i), ERR_OK);
    }
    assert_int_equal(load(rig, buf_text(&text)), ERR_INVAL);
    assert_int_equal(rig->report.count, CONF_MISTAKES_MAX);
    assert_true(rig->report.cut);
    buf_release(&text);
}

/* ---- Bounds ---- */

static void input_is_bounded(void **state)
{
    struct rig *rig = *state;
    struct buf text;
    buf_init(&text, (size_t)4 << 20);
    char *room = NULL;
    assert_int_equal(buf_reserve(&text, ((size_t)1 << 20) + 1, &room), ERR_OK);
    memset(room, '#', ((size_t)1 << 20) + 1);
    buf_commit(&text, ((size_t)1 << 20) + 1);
    assert_int_equal(conf_load_bytes(rig->file, buf_span(&text), NULL, &rig->conf, &rig->report),
                     ERR_INVAL);
    has_mistake(rig, 0, 0, "", "too large");
    buf_reset(&text);
    assert_int_equal(buf_append(&text, SPAN_LIT("a: ")), ERR_OK);
    for (int i = 0; i < 500000; i++) {
        assert_int_equal(buf_append_byte(&text, '['), ERR_OK);
    }
    assert_int_equal(load(rig, buf_text(&text)), ERR_INVAL);
    has_mistake(rig, 1, 23, "", "nested too deep");
    buf_reset(&text);
    assert_int_equal(buf_append(&text, SPAN_LIT("a: [")), ERR_OK);
    for (int i = 0; i < 60000; i++) {
        assert_int_equal(buf_append(&text, SPAN_LIT("1,\n")), ERR_OK);
    }
    assert_int_equal(load(rig, buf_text(&text)), ERR_INVAL);
    assert_non_null(strstr(rig->report.mistakes[0].message, "more than 50000 values"));
    buf_reset(&text);
    assert_int_equal(buf_append(&text, SPAN_LIT(LISTENERS BACKENDS "routes:\n")), ERR_OK);
    for (int i = 0; i < 1001; i++) {
        assert_int_equal(buf_append(&text, SPAN_LIT("- {via: [acs]}\n")), ERR_OK);
    }
    assert_int_equal(load(rig, buf_text(&text)), ERR_INVAL);
    has_mistake(rig, 4, 1, "routes", "too many entries");
    buf_release(&text);
}

/* What the dispatcher has no room for is refused here, not when the gateway starts. */
static void no_more_than_can_be_served(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE "lanes: {a: {}, b: {}, c: {}, d: {}, e: {}}\n");
    assert_int_equal(rig->conf->lane_count, CONF_LANES_MAX);
    assert_int_equal(load(rig, BASE "lanes: {a: {}, b: {}, c: {}, d: {}, e: {}, f: {}}\n"),
                     ERR_INVAL);
    has_mistake(rig, 4, 8, "lanes", "too many entries: 9, with the 3 that are always there");
    has_mistake(rig, 4, 8, "lanes", "at most 8");
    struct buf text;
    buf_init(&text, (size_t)1 << 20);
    assert_int_equal(buf_append(&text, SPAN_LIT(LISTENERS ROUTES "backends:\n")), ERR_OK);
    for (int i = 0; i <= CONF_BACKENDS_MAX; i++) {
        if (i == CONF_BACKENDS_MAX) {
            load_good(rig, buf_text(&text));
        }
        char name[8];
        (void)snprintf(name, sizeof name, "b%d", i);
        assert_int_equal(buf_printf(&text,
                                    "  %s: {type: acs, endpoint: \"https://x.test\", access_key: "
                                    "aGVhdmU=, sender: a@b.test}\n",
                                    i == 0 ? "acs" : name),
                         ERR_OK);
    }
    assert_int_equal(load(rig, buf_text(&text)), ERR_INVAL);
    has_mistake(rig, 4, 3, "backends", "too many entries: 17");
    has_mistake(rig, 4, 3, "backends", "at most 16");
    assert_int_equal(rig->report.count, 1);
    buf_release(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(mistakes_have_places, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(all_mistakes_in_one_run, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(report_forms, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(too_many_mistakes_are_cut, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(input_is_bounded, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(no_more_than_can_be_served, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
