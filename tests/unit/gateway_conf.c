/* Unit tests of gateway/conf: values, files, environment, snapshots, pages. Through conf.h. */
#include "tests/unit/gateway_conf_rig.h"

/* ---- Value syntaxes ---- */

static void durations(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t ms;
    } good[] = {{"0", 0},          {"90", 90000},      {"500ms", 500},
                {"5s", 5000},      {"15m", 900000},    {"6h", 21600000},
                {"3d", 259200000}, {"1h30m", 5400000}, {"1d2h3m4s5ms", 93784005}};
    for (size_t i = 0; i < LENGTH(good); i++) {
        int64_t ms = -1;
        assert_int_equal(conf_parse_duration(span_of(good[i].text), &ms), ERR_OK);
        assert_int_equal(ms, good[i].ms);
    }
    static const char *const bad[] = {"",      "s",    "5 s",  "5x",        "-5s",  "1.5h", "5S",
                                      "30m1h", "5s5s", "1h30", "5 minutes", "0x10", "5s "};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        int64_t ms = -1;
        assert_int_equal(conf_parse_duration(span_of(bad[i]), &ms), ERR_INVAL);
        assert_int_equal(ms, -1);
    }
    int64_t ms = -1;
    assert_int_equal(conf_parse_duration(SPAN_LIT("9223372036854775807d"), &ms), ERR_LIMIT);
    assert_int_equal(conf_parse_duration(SPAN_LIT("106751991167d1000d"), &ms), ERR_INVAL);
    assert_int_equal(conf_parse_duration(SPAN_LIT("106751991167d9999999h"), &ms), ERR_LIMIT);
    assert_int_equal(ms, -1);
}

static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"1048576", 1048576},
                {"64KiB", 65536},
                {"50MiB", 52428800},
                {"4GiB", 4294967296},
                {"2TiB", 2199023255552},
                {"10kB", 10000},
                {"10MB", 10000000},
                {"1GB", 1000000000},
                {"7B", 7},
                {"50 MiB", 52428800}};
    for (size_t i = 0; i < LENGTH(good); i++) {
        uint64_t bytes = 1;
        assert_int_equal(conf_parse_size(span_of(good[i].text), &bytes), ERR_OK);
        assert_int_equal(bytes, good[i].bytes);
    }
    static const char *const bad[] = {"", "MiB", "4Gb", "4G", "-1", "1.5MiB", "5MiBs"};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        uint64_t bytes = 1;
        assert_int_equal(conf_parse_size(span_of(bad[i]), &bytes), ERR_INVAL);
        assert_int_equal(bytes, 1);
    }
    uint64_t bytes = 1;
    assert_int_equal(conf_parse_size(SPAN_LIT("99999999999TiB"), &bytes), ERR_LIMIT);
}

static void rates(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        struct conf_rate rate;
    } good[] = {
        {"30/m", {.units = 30, .window_ms = 60000}},
        {"100/h", {.units = 100, .window_ms = 3600000}},
        {"10000r/d", {.units = 10000, .window_ms = 86400000, .is_recipients = true}},
        {"60/10s", {.units = 60, .window_ms = 10000}},
        {"5r/90s", {.units = 5, .window_ms = 90000, .is_recipients = true}},
    };
    for (size_t i = 0; i < LENGTH(good); i++) {
        struct conf_rate rate = {0};
        assert_int_equal(conf_parse_rate(span_of(good[i].text), &rate), ERR_OK);
        assert_int_equal(rate.units, good[i].rate.units);
        assert_int_equal(rate.window_ms, good[i].rate.window_ms);
        assert_int_equal(rate.is_recipients, good[i].rate.is_recipients);
    }
    static const char *const bad[] = {"",      "30",     "/m",    "30/",  "0/m",
                                      "30/0s", "30 / m", "30x/m", "30/w", "30m"};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        struct conf_rate rate = {0};
        assert_int_equal(conf_parse_rate(span_of(bad[i]), &rate), ERR_INVAL);
        assert_int_equal(rate.units, 0);
    }
}

/* ---- A whole file ---- */

/* The example of the product description, without what later versions bring. */
static const char example[] =
    "hostname: mail-gw.contoso.com\n"
    "roles: [ingest, dispatch]\n"
    "threads: {ingress: 2, delivery: 3}           # default: from the cores\n"
    "tls: {cert_file: tls.crt, key_file: tls.key, min_version: \"1.2\"}\n"
    "listeners:\n"
    "  - {protocol: smtp, bind: \"0.0.0.0:2525\", tls: starttls, auth: optional, networks: [10.0.0.0/8]}\n"
    "  - {protocol: smtp, bind: \"0.0.0.0:4465\", tls: implicit, auth: required, line_endings: repair,\n"
    "     max_recipients: 500, max_message_bytes: 60MiB, max_connections: 20, idle_timeout: 90s}\n"
    "  - {protocol: http, bind: \"0.0.0.0:8080\"}\n"
    "  - {protocol: http, bind: \"[::]:8443\", tls: implicit}\n"
    "  - {protocol: admin, bind: \"127.0.0.1:9090\"}\n"
    "queue:\n"
    "  redis: embedded\n"
    "  data_dir: /var/lib/heave\n"
    "  durability: fsync\n"
    "  shards: 8\n"
    "  max_bytes: 4GiB\n"
    "tenant: {accepted_domains: [contoso.com, \"*.corp.contoso.com\"]}\n"
    "lanes:\n"
    "  alert:  {share: 50%, retry: \"5s, 15s, 30s, 1m, 2m, 5m*\", expires: 6h,  on_unknown: retry}\n"
    "  bulk:   {share: 15%, retry: \"5m, 15m\", expires: 72h, on_unknown: hold}\n"
    "credentials:\n"
    "  entra: {type: client_secret, tenant_id: t1, client_id: c1, client_secret: \"${ENTRA_SECRET}\",\n"
    "          authority: \"https://login.test/\", scope: \"https://graph.test/.default\", ca_file: tls.crt}\n"
    "backends:\n"
    "  hve:   {type: hve, accounts: [{user: alerts@contoso.com, password_file: hve.pw}], connections: 3}\n"
    "  acs:   {type: acs, endpoint: \"https://x.communication.azure.com/\", access_key_file: acs.key,\n"
    "          sender: no-reply@contoso.com, rates: [\"30/m\", \"100/h\", \"10000r/d\"], neutral_to: list@contoso.com}\n"
    "  graph: {type: graph, credential: entra, mailboxes: [notify1@contoso.com, notify2@contoso.com],\n"
    "          recipients_per_message: 20, concurrency: 2, message_bytes: 2MiB, timeouts: {connect: 5s, reply: 2m}}\n"
    "  onprem: {type: smtp, host: exch01.corp.contoso.com, port: 25, tls: optional, auth: none}\n"
    "routes:\n"
    "  - {match: {recipient: internal}, via: [hve, graph]}\n"
    "  - {match: {recipient: external, lane: bulk, client: erp, sender: \"*@contoso.com\", domains: [fabrikam.com]},\n"
    "     via: [acs]}\n"
    "  - {via: [onprem]}\n"
    "clients:\n"
    "  - {name: zabbix, user: zabbix, password_hash: \"$y$j9T$abcdefgh$xyz\", from: [\"*@contoso.com\"], lane: alert}\n"
    "  - {name: scanners, networks: [10.20.0.0/16, \"2001:db8::/32\"], from: [scan@contoso.com], recipients: internal}\n"
    "  - {name: erp, api_key_hash: \"$y$j9T$abcdefgh$uvw\", lane: bulk, scopes: [send, admin], choose_lane: true}\n";

static const char *const example_environment[] = {"PATH=/bin", "ENTRA_SECRET=s3cret", NULL};

static void check_listeners(const struct conf *conf)
{
    assert_int_equal(conf->listener_count, 5);
    const struct conf_listener *l = conf->listeners;
    assert_int_equal(l[0].protocol, CONF_PROTOCOL_SMTP);
    assert_string_equal(l[0].bind, "0.0.0.0:2525");
    assert_int_equal(l[0].tls, CONF_TLS_STARTTLS);
    assert_int_equal(l[0].auth, CONF_AUTH_OPTIONAL);
    assert_false(l[0].auth_without_tls);
    assert_int_equal(l[0].network_count, 1);
    assert_string_equal(l[0].networks[0], "10.0.0.0/8");
    assert_int_equal(l[0].max_recipients, 10000);
    assert_int_equal(l[0].max_message_bytes, 50u << 20);
    assert_int_equal(l[0].idle_timeout_ms, 300000);
    assert_int_equal(l[0].line_endings, CONF_LINES_STRICT);
    assert_int_equal(l[1].tls, CONF_TLS_IMPLICIT);
    assert_int_equal(l[1].auth, CONF_AUTH_REQUIRED);
    assert_int_equal(l[1].line_endings, CONF_LINES_REPAIR);
    assert_int_equal(l[1].max_recipients, 500);
    assert_int_equal(l[1].max_message_bytes, 60u << 20);
    assert_int_equal(l[1].max_connections, 20);
    assert_int_equal(l[1].idle_timeout_ms, 90000);
    assert_int_equal(l[2].protocol, CONF_PROTOCOL_HTTP);
    assert_int_equal(l[2].tls, CONF_TLS_OFF);
    assert_int_equal(l[2].idle_timeout_ms, 75000);
    assert_string_equal(l[3].bind, "[::]:8443");
    assert_int_equal(l[4].protocol, CONF_PROTOCOL_ADMIN);
    assert_int_equal(conf->intake.max_message_bytes, 60u << 20);
}

static void check_queue_and_lanes(const struct conf *conf)
{
    const struct conf_queue *q = &conf->queue;
    assert_int_equal(q->kind, CONF_QUEUE_EMBEDDED);
    assert_string_equal(q->data_dir, "/var/lib/heave");
    assert_true(q->handle.managed);
    assert_int_equal(q->handle.durability, QUEUE_FSYNC);
    assert_int_equal(q->handle.shards, 8);
    assert_int_equal(q->handle.lease_ms, 60000);
    assert_int_equal(q->handle.retention_ms, 7 * INT64_C(86400000));
    assert_int_equal(q->handle.max_bytes, UINT64_C(4) << 30);
    assert_int_equal(conf->lane_count, 3);
    const struct conf_lane *alert = &conf->lanes[0];
    const struct conf_lane *bulk = &conf->lanes[1];
    const struct conf_lane *normal = &conf->lanes[2];
    static const int64_t ladder[] = {5000, 15000, 30000, 60000, 120000, 300000};
    assert_string_equal(alert->name, "alert");
    assert_int_equal(alert->retry_count, LENGTH(ladder));
    assert_memory_equal(alert->retry_ms, ladder, sizeof ladder);
    assert_true(alert->retry_last_repeats);
    assert_string_equal(bulk->name, "bulk");
    assert_int_equal(bulk->retry_count, 2);
    assert_false(bulk->retry_last_repeats);
    assert_int_equal(bulk->on_unknown, CONF_UNKNOWN_HOLD);
    assert_int_equal(bulk->share_percent, 15);
    assert_string_equal(normal->name, "normal");
    assert_int_equal(normal->share_percent, 35);
    assert_int_equal(normal->expires_ms, 86400000);
    assert_int_equal(normal->retry_count, 5);
    assert_int_equal(conf->intake.lane_count, 3);
    assert_string_equal(conf->intake.lane_names[2], "normal");
    assert_int_equal(conf->intake.lane_expires_ms[0], 6 * 3600000);
}

static void check_backends(const struct conf *conf)
{
    assert_int_equal(conf->backend_count, 4);
    const struct backend_conf *hve = &conf->backends[0].conf;
    assert_string_equal(hve->name, "hve");
    assert_string_equal(hve->type, "hve");
    assert_string_equal(hve->hostname, "mail-gw.contoso.com");
    assert_string_equal(hve->host, backend_defaults("hve")->host);
    assert_int_equal(hve->port, 587);
    assert_int_equal(hve->tls, BACKEND_TLS_STARTTLS);
    assert_int_equal(hve->auth, BACKEND_AUTH_LOGIN);
    assert_int_equal(hve->account_count, 1);
    assert_string_equal(hve->accounts[0].user, "alerts@contoso.com");
    assert_string_equal(hve->accounts[0].password, "hve secret");
    assert_int_equal(hve->connections, 3);
    assert_int_equal(hve->concurrency, 3);
    assert_int_equal(hve->recipients_per_message, 50);
    assert_int_equal(hve->connect_timeout_ms, 30000);
    assert_int_equal(hve->reply_timeout_ms, 600000);
    const struct conf_backend *acs = &conf->backends[1];
    assert_string_equal(acs->conf.endpoint, "https://x.communication.azure.com");
    assert_string_equal(acs->conf.access_key, "aGVhdmUtc2lt");
    assert_string_equal(acs->conf.neutral_to, "list@contoso.com");
    assert_null(acs->conf.api_version);
    assert_int_equal(acs->rate_count, 3);
    assert_true(acs->rates[2].is_recipients);
    assert_int_equal(acs->rates[1].window_ms, 3600000);
    const struct backend_conf *graph = &conf->backends[2].conf;
    assert_ptr_equal(graph->credential, &conf->credentials[0]);
    assert_string_equal(graph->endpoint, "https://graph.microsoft.com");
    assert_int_equal(graph->mailbox_count, 2);
    assert_string_equal(graph->mailboxes[1], "notify2@contoso.com");
    assert_int_equal(graph->recipients_per_message, 20);
    assert_int_equal(graph->concurrency, 2);
    assert_int_equal(graph->message_bytes, 2u << 20);
    assert_int_equal(graph->connect_timeout_ms, 5000);
    assert_int_equal(graph->reply_timeout_ms, 120000);
    const struct backend_conf *onprem = &conf->backends[3].conf;
    assert_int_equal(onprem->tls, BACKEND_TLS_OPTIONAL);
    assert_int_equal(onprem->auth, BACKEND_AUTH_NONE);
    assert_int_equal(onprem->account_count, 0);
    assert_int_equal(conf->credential_count, 1);
    assert_string_equal(conf->credentials[0].client_secret, "s3cret");
    assert_string_equal(conf->credentials[0].authority, "https://login.test");
}

static void check_routes_and_clients(const struct conf *conf)
{
    const struct route_conf *route = &conf->route;
    assert_int_equal(route->accepted_count, 2);
    assert_string_equal(route->accepted_domains[1], "*.corp.contoso.com");
    assert_int_equal(route->rule_count, 3);
    assert_int_equal(route->rules[0].recipient, ROUTE_INTERNAL);
    assert_int_equal(route->rules[0].via_count, 2);
    assert_int_equal(route->rules[0].via[1], 2);
    assert_string_equal(route->rules[1].lane, "bulk");
    assert_string_equal(route->rules[1].client, "erp");
    assert_string_equal(route->rules[1].sender, "*@contoso.com");
    assert_string_equal(route->rules[1].domains[0], "fabrikam.com");
    assert_int_equal(route->rules[2].recipient, ROUTE_ANY);
    assert_null(route->rules[2].lane);
    assert_int_equal(route->backend_count, 4);
    assert_true(route->backends[0].internal_only);
    assert_int_equal(route->backends[2].recipients_per_message, 20);
    assert_int_equal(conf->client_count, 3);
    const struct policy_client_conf *c = conf->clients;
    assert_string_equal(c[0].password_hash, "$y$j9T$abcdefgh$xyz");
    assert_string_equal(c[0].lane, "alert");
    assert_false(c[0].may_choose_lane);
    assert_int_equal(c[0].scopes, POLICY_SCOPE_SEND | POLICY_SCOPE_READ);
    assert_int_equal(c[1].network_count, 2);
    assert_int_equal(c[1].recipients, POLICY_RECIPIENTS_INTERNAL);
    assert_string_equal(c[1].lane, "normal");
    assert_true(c[1].may_choose_lane);
    assert_true(c[2].may_choose_lane);
    assert_int_equal(c[2].scopes, POLICY_SCOPE_SEND | POLICY_SCOPE_ADMIN);
}

static void whole_example(void **state)
{
    struct rig *rig = *state;
    rig->environment = example_environment;
    load_good(rig, example);
    const struct conf *conf = rig->conf;
    assert_string_equal(conf->file, rig->file);
    assert_string_equal(conf->hostname, "mail-gw.contoso.com");
    assert_int_equal(conf->roles, CONF_ROLE_INGEST | CONF_ROLE_DISPATCH);
    assert_int_equal(conf->ingress_threads, 2);
    assert_int_equal(conf->delivery_threads, 3);
    char cert[160];
    (void)snprintf(cert, sizeof cert, "%s/tls.crt", rig->folder);
    assert_string_equal(conf->tls.cert_file, cert);
    assert_int_equal(conf->tls.min_version, TLS_1_2);
    check_listeners(conf);
    check_queue_and_lanes(conf);
    check_backends(conf);
    check_routes_and_clients(conf);
    assert_string_equal(conf->intake.hostname, conf->hostname);
    assert_ptr_equal(conf->intake.route, &conf->route);
    assert_int_equal(conf->intake.max_received, 50);
}

static void small_file_gets_defaults(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE);
    const struct conf *conf = rig->conf;
    char name[HOST_NAME_MAX + 1] = "";
    assert_int_equal(gethostname(name, sizeof name), 0);
    assert_string_equal(conf->hostname, name);
    assert_int_equal(conf->roles, CONF_ROLE_INGEST | CONF_ROLE_DISPATCH);
    assert_in_range(conf->ingress_threads, 1, 16);
    assert_int_equal(conf->delivery_threads, conf->ingress_threads);
    assert_int_equal(conf->log.level, LOG_INFO);
    assert_int_equal(conf->log.form, LOG_FORM_TEXT);
    assert_false(conf->log.full_addresses);
    assert_int_equal(conf->drain_timeout_ms, 30000);
    assert_int_equal(conf->queue.kind, CONF_QUEUE_EMBEDDED);
    assert_string_equal(conf->queue.data_dir, "/var/lib/heave");
    assert_int_equal(conf->queue.handle.shards, 1);
    assert_int_equal(conf->lane_count, 3);
    assert_string_equal(conf->lanes[0].name, "alert");
    assert_int_equal(conf->lanes[0].share_percent, 50);
    assert_string_equal(conf->lanes[2].name, "bulk");
    assert_int_equal(conf->lanes[2].retry_ms[2], 3600000);
    assert_true(conf->lanes[2].retry_last_repeats);
    assert_int_equal(conf->client_count, 0);
    assert_null(conf->tls.cert_file);
}

static void redis_addresses(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE "queue: {redis: \"redis://u:p%40ss@redis.corp:6380/3\"}\n");
    const struct queue_conf *q = &rig->conf->queue.handle;
    assert_int_equal(rig->conf->queue.kind, CONF_QUEUE_STANDALONE);
    assert_string_equal(q->host, "redis.corp");
    assert_int_equal(q->port, 6380);
    assert_int_equal(q->database, 3);
    assert_string_equal(q->user, "u");
    assert_string_equal(q->password, "p@ss");
    assert_false(rig->conf->queue.use_tls);
    assert_false(q->managed);
    load_good(
        rig, BASE
        "queue: {redis: \"rediss://[2001:db8::1]\", user: a, password: b, ca_file: tls.crt}\n");
    q = &rig->conf->queue.handle;
    assert_string_equal(q->host, "2001:db8::1");
    assert_int_equal(q->port, 6379);
    assert_int_equal(q->database, 0);
    assert_true(rig->conf->queue.use_tls);
    assert_string_equal(q->user, "a");
    assert_string_equal(q->password, "b");
    load_good(rig, BASE "queue: {redis: \"redis://:only@h:1\"}\n");
    assert_null(rig->conf->queue.handle.user);
    assert_string_equal(rig->conf->queue.handle.password, "only");
    load_good(rig, BASE "queue: {redis: \"unix://u:p@/run/redis.sock?db=2\"}\n");
    q = &rig->conf->queue.handle;
    assert_int_equal(q->topology, QUEUE_STANDALONE);
    assert_string_equal(q->socket_path, "/run/redis.sock");
    assert_int_equal(q->database, 2);
    assert_string_equal(q->password, "p");
    assert_int_equal(q->shards, 1);
    load_good(rig, BASE "queue: {redis: \"sentinel://u:p@s1,[2001:db8::2],s3:26380/mymaster/4\", "
                        "sentinel_password: s, tls: true, ca_file: tls.crt, cert_file: tls.crt, "
                        "key_file: tls.key, durability: replicated, replicas: 2}\n");
    q = &rig->conf->queue.handle;
    assert_int_equal(q->topology, QUEUE_SENTINEL);
    assert_int_equal(q->host_count, 3);
    assert_string_equal(q->hosts[0].name, "s1");
    assert_int_equal(q->hosts[0].port, 26379);
    assert_string_equal(q->hosts[1].name, "2001:db8::2");
    assert_int_equal(q->hosts[2].port, 26380);
    assert_string_equal(q->master_name, "mymaster");
    assert_string_equal(q->user, "u");
    assert_string_equal(q->sentinel_password, "s");
    assert_null(q->sentinel_user);
    assert_int_equal(q->database, 4);
    assert_int_equal(q->replicas, 2);
    assert_true(rig->conf->queue.use_tls);
    assert_non_null(rig->conf->queue.cert_file);
    load_good(rig, BASE "queue: {redis: \"cluster://n1:7000,n2\"}\n");
    q = &rig->conf->queue.handle;
    assert_int_equal(q->topology, QUEUE_CLUSTER);
    assert_int_equal(q->host_count, 2);
    assert_int_equal(q->hosts[0].port, 7000);
    assert_int_equal(q->hosts[1].port, 6379);
    assert_int_equal(q->shards, 16);
    static const char *const bad[] = {"redis://", "redis://h:99999", "redis://h/x",
                                      "http://h", "redis://[::1",    "redis://[::1]x",
                                      "h:6379",   "redis://u:%zz@h"};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        char text[600];
        (void)snprintf(text, sizeof text, BASE "queue: {redis: \"%s\"}\n", bad[i]);
        assert_int_equal(load(rig, text), ERR_INVAL);
        has_mistake(rig, BASE_LINES + 1, 16, "queue.redis", "no address of a Redis server");
    }
}

/* ---- ${NAME} ---- */

static void environment_expands(void **state)
{
    struct rig *rig = *state;
    static const char *const environment[] = {"DOMAIN=contoso.com", "EMPTY=", "SHARDS=3",
                                              "A=${DOMAIN}", NULL};
    rig->environment = environment;
    load_good(rig, BASE "hostname: mx-${SHARDS}.${DOMAIN}\n"
                        "queue: {shards: \"${SHARDS}\"}\n"
                        "tenant: {accepted_domains: [\"${DOMAIN}\"]}\n"
                        "clients:\n"
                        "- {name: a, user: \"$${A}$1$A\", password_hash: \"$y$j9T$$x$${DOMAIN}\"}\n"
                        "- {name: \"${A}\", networks: [\"::1\"]}\n");
    assert_string_equal(rig->conf->hostname, "mx-3.contoso.com");
    assert_int_equal(rig->conf->queue.handle.shards, 3);
    assert_string_equal(rig->conf->route.accepted_domains[0], "contoso.com");
    assert_string_equal(rig->conf->clients[0].user, "${A}$1$A");
    assert_string_equal(rig->conf->clients[0].password_hash, "$y$j9T$$x${DOMAIN}");
    assert_string_equal(rig->conf->clients[1].name, "${DOMAIN}"); /* expanded once, not again */
    static const struct bad_case cases[] = {
        {BASE "hostname: ${MISSING}\n", 4, 11, "hostname", "MISSING is not set"},
        {BASE "hostname: ${DOMAI}\n", 4, 11, "hostname", "DOMAI is not set"},
        {BASE "hostname: ${EMPTY}\n", 4, 11, "hostname", "the value is empty"},
        {BASE "hostname: ${}\n", 4, 11, "hostname", "does not start a variable"},
        {BASE "hostname: ${A\n", 4, 11, "hostname", "does not start a variable"},
        {BASE "hostname: ${1A}\n", 4, 11, "hostname", "does not start a variable"},
        {BASE "hostname: ${A-b}\n", 4, 11, "hostname", "does not start a variable"},
        {BASE "tenant: {accepted_domains: [a.b, \"${NO}\"]}\n", 4, 34, "tenant.accepted_domains.1",
         "NO is not set"},
    };
    for (size_t i = 0; i < LENGTH(cases); i++) {
        assert_int_equal(load(rig, cases[i].text), ERR_INVAL);
        has_mistake(rig, cases[i].line, cases[i].column, cases[i].path, cases[i].fragment);
        assert_int_equal(rig->report.count, 1);
    }
}

static const struct admission_lane *admitted(const struct conf *conf, const char *lane)
{
    for (size_t i = 0; i < conf->admission.lane_count; i++) {
        if (strcmp(conf->admission.lanes[i].name, lane) == 0) {
            assert_string_equal(conf->queue.handle.lane_limits[i].lane, lane);
            assert_int_equal(conf->queue.handle.lane_limits[i].percent,
                             conf->admission.lanes[i].admit_percent);
            return &conf->admission.lanes[i];
        }
    }
    fail_msg("no lane %s", lane);
    return NULL;
}

static void admission_and_repeats(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE
              "lanes: {bulk: {admit: 50%, max_age: 2h}, own: {}}\n"
              "queue: {max_bytes: 8MiB, max_messages: 7}\n"
              "clients:\n"
              "- {name: a, networks: [\"::1\"], dedup: {mode: throttle, window: 90s, limit: 3}}\n"
              "- {name: b, networks: [\"::2\"], dedup: {mode: digest, ignore_digits: true}}\n"
              "- {name: c, networks: [\"::3\"]}\n");
    const struct conf *conf = rig->conf;
    assert_int_equal(conf->admission.max_bytes, 8u << 20);
    assert_int_equal(conf->admission.max_messages, 7);
    assert_int_equal(conf->admission.max_memory_percent, 95);
    assert_int_equal(admitted(conf, "alert")->admit_percent, 100);
    assert_int_equal(admitted(conf, "normal")->admit_percent, 95);
    assert_int_equal(admitted(conf, "bulk")->admit_percent, 50);
    assert_int_equal(admitted(conf, "bulk")->max_age_ms, 7200000);
    assert_int_equal(admitted(conf, "own")->admit_percent, 90);
    assert_int_equal(admitted(conf, "own")->max_age_ms, 0);
    assert_int_equal(conf->clients[0].dedup.mode, POLICY_DEDUP_THROTTLE);
    assert_int_equal(conf->clients[0].dedup.window_ms, 90000);
    assert_int_equal(conf->clients[0].dedup.limit, 3);
    assert_int_equal(conf->clients[1].dedup.mode, POLICY_DEDUP_DIGEST);
    assert_int_equal(conf->clients[1].dedup.window_ms, 300000);
    assert_true(conf->clients[1].dedup.ignore_digits);
    assert_int_equal(conf->clients[2].dedup.mode, POLICY_DEDUP_OFF);
}

/* ---- HEAVE_SECTION__KEY ---- */

static void environment_overrides(void **state)
{
    struct rig *rig = *state;
    static const char *const environment[] = {
        "HEAVE_HOSTNAME=over.test",
        "HEAVE_QUEUE__MAX_BYTES=1GiB",
        "HEAVE_LANES__BULK__EXPIRES=48h",
        "HEAVE_LANES__ALERT__RETRY=1s, 2s*",
        "HEAVE_LISTENERS__0__BIND=127.0.0.1:26",
        "HEAVE_LISTENERS__0__NETWORKS=10.1.0.0/16, 10.2.0.0/16",
        "HEAVE_BACKENDS__EU_WEST__ACCESS_KEY_FILE=acs.key",
        "HEAVE_BACKENDS__EU_WEST__TIMEOUTS__REPLY=7s",
        "HEAVE_ROLES=ingest,dispatch",
        "HEAVE_LOG__LEVEL=debug",
        "HEAVE_API_KEY=not an option",
        "HEAVE_PORT=tcp://10.0.0.1:25",
        "HEAVE_SERVICE_HOST=10.0.0.1",
        "OTHER__THING=x",
        NULL};
    static const char text[] = LISTENERS
        "backends: {eu-west: {type: acs, endpoint: \"https://x.test\", access_key: aGVhdmU=, sender: a@b.test}}\n"
        "routes: [{via: [eu-west]}]\n"
        "hostname: file.test\n";
    rig->environment = environment;
    load_good(rig, text);
    const struct conf *conf = rig->conf;
    assert_string_equal(conf->hostname, "over.test");
    assert_int_equal(conf->queue.handle.max_bytes, 1u << 30);
    assert_int_equal(conf->lanes[2].expires_ms, 48 * 3600000);
    assert_int_equal(conf->lanes[0].retry_count, 2);
    assert_string_equal(conf->listeners[0].bind, "127.0.0.1:26");
    assert_int_equal(conf->listeners[0].network_count, 2);
    assert_string_equal(conf->listeners[0].networks[1], "10.2.0.0/16");
    assert_string_equal(conf->backends[0].conf.access_key, "aGVhdmUtc2lt");
    assert_int_equal(conf->backends[0].conf.reply_timeout_ms, 7000);
    assert_int_equal(conf->log.level, LOG_DEBUG);
}

static void bad_overrides(void **state)
{
    struct rig *rig = *state;
    static const struct {
        const char *variable;
        const char *path;
        const char *fragment;
    } cases[] = {
        {"HEAVE_QUEUE__SHARD=3", "queue", "HEAVE_QUEUE__SHARD: there is no such option"},
        {"HEAVE_QUEU__SHARDS=3", "", "HEAVE_QUEU__SHARDS: there is no such section"},
        {"HEAVE_LISTENERS__7__BIND=*:1", "listeners", "there is no such section or entry"},
        {"HEAVE_BACKENDS__NO__HOST=h", "backends", "there is no such section or entry"},
        {"HEAVE_BACKENDS__ACS__TIMEOUTS=5s", "backends.acs", "only single values"},
        {"HEAVE_QUEUE__SHARDS=99", "queue.shards",
         "environment variable HEAVE_QUEUE__SHARDS: 99 is too large"},
        {"HEAVE_QUEUE__SHARDS=", "queue.shards", "HEAVE_QUEUE__SHARDS: the value is empty"},
        {"HEAVE___=x", "", "there is no such"},
        {"HEAVE_ROLES=ingest,eat", "roles.1", "environment variable HEAVE_ROLES"},
    };
    for (size_t i = 0; i < LENGTH(cases); i++) {
        const char *const environment[] = {cases[i].variable, NULL};
        rig->environment = environment;
        assert_int_equal(load(rig, BASE), ERR_INVAL);
        has_mistake(rig, 0, 0, cases[i].path, cases[i].fragment);
        rig->environment = NULL;
    }
}

/* ---- Keys of stored bodies ---- */

static void keys_of_bodies_come_from_a_file(void **state)
{
    struct rig *rig = *state;
    static const char with_keys[] = BASE "queue: {encryption_key_file: keys}\n";
    static const char good[] = "# new\n2026:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n"
                               "2025:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
    load_good(rig, BASE);
    assert_true(rig->conf->queue.handle.compression);
    assert_null(rig->conf->queue.handle.encryption_keys);
    write_file(rig, "keys", good);
    load_good(rig, with_keys);
    assert_string_equal(rig->conf->queue.handle.encryption_keys, good);
    write_file(rig, "keys", "2026:ICEi\n");
    assert_int_equal(load(rig, with_keys), ERR_INVAL);
    has_mistake(rig, 4, 30, "queue.encryption_key_file", "32 bytes");
    write_file(rig, "keys", "");
    assert_int_equal(load(rig, with_keys), ERR_INVAL);
    has_mistake(rig, 4, 30, "queue.encryption_key_file", "no key");
    assert_int_equal(load(rig, BASE "queue: {encryption_key_file: nowhere}\n"), ERR_INVAL);
    has_mistake(rig, 4, 30, "queue.encryption_key_file", "nowhere");
}

/* ---- _file twins ---- */

static void secrets_come_from_files(void **state)
{
    struct rig *rig = *state;
    static const char with_password[] = BASE
        "queue: {redis: \"redis://h\", password_file: other}\n";
    static const struct {
        const char *content;
        const char *secret;
    } good[] = {{"plain", "plain"},
                {"line\n", "line"},
                {"dos\r\n", "dos"},
                {"htpasswd\n\n", "htpasswd"},
                {" kept ", " kept "}};
    for (size_t i = 0; i < LENGTH(good); i++) {
        write_file(rig, "other", good[i].content);
        load_good(rig, with_password);
        assert_string_equal(rig->conf->queue.handle.password, good[i].secret);
    }
    static const char *const bad[] = {"", "\n", "two\nlines\n"};
    for (size_t i = 0; i < LENGTH(bad); i++) {
        write_file(rig, "other", bad[i]);
        assert_int_equal(load(rig, with_password), ERR_INVAL);
        assert_int_equal(rig->report.count, 1);
        assert_int_equal(rig->report.mistakes[0].line, 4);
        assert_int_equal(rig->report.mistakes[0].column, 44);
    }
    char absolute[400];
    (void)snprintf(absolute, sizeof absolute,
                   BASE "queue: {redis: \"redis://h\", password_file: %s/hve.pw}\n", rig->folder);
    load_good(rig, absolute);
    assert_string_equal(rig->conf->queue.handle.password, "hve secret");
    assert_int_equal(load(rig, BASE "queue: {redis: \"redis://h\", password_file: nowhere}\n"),
                     ERR_INVAL);
    has_mistake(rig, 4, 44, "queue.password_file", "No such file");
    assert_int_equal(
        load(rig, BASE "queue: {redis: \"redis://h\", password: a, password_file: hve.pw}\n"),
        ERR_INVAL);
    has_mistake(rig, 4, 42, "queue.password_file", "both given");
    write_file(rig, "other", "$y$j9T$abcdefgh$xyz\n");
    load_good(
        rig, BASE
        "clients:\n- {name: a, user: a, password_hash_file: other}\n- {name: b, api_key_hash_file: other}\n");
    assert_string_equal(rig->conf->clients[0].password_hash, "$y$j9T$abcdefgh$xyz");
    assert_string_equal(rig->conf->clients[1].api_key_hash, "$y$j9T$abcdefgh$xyz");
}

static void huge_secret_file_is_refused(void **state)
{
    struct rig *rig = *state;
    char *large = mem_alloc(70001);
    memset(large, 'x', 70000);
    large[70000] = '\0';
    write_file(rig, "other", large);
    mem_free(large);
    assert_int_equal(load(rig, BASE "queue: {redis: \"redis://h\", password_file: other}\n"),
                     ERR_INVAL);
    has_mistake(rig, 4, 44, "queue.password_file", "below 64 KiB");
}

/* ---- Files ---- */

static void file_is_read(void **state)
{
    struct rig *rig = *state;
    write_file(rig, "heave.yaml", BASE "hostname: from.file\n");
    assert_int_equal(conf_load(rig->file, &rig->conf, &rig->report), ERR_OK);
    assert_string_equal(rig->conf->hostname, "from.file");
    conf_unref(&rig->conf);
    assert_int_equal(unlink(rig->file), 0);
    assert_int_equal(conf_load(rig->file, &rig->conf, &rig->report), ERR_IO);
    has_mistake(rig, 0, 0, "", "No such file");
    assert_null(rig->conf);
    assert_int_equal(conf_load(rig->folder, &rig->conf, &rig->report), ERR_IO);
}

static void paths_are_absolute(void **state)
{
    struct rig *rig = *state;
    static const struct {
        const char *file;
        const char *below; /* the working folder, or NULL: as it is */
        const char *folder;
    } cases[] = {{"heave.yaml", "", ""},
                 {"etc/heave.yaml", "", "etc/"},
                 {"/etc/h/heave.yaml", NULL, "/etc/h/"}};
    char here[PATH_MAX];
    assert_non_null(getcwd(here, sizeof here));
    for (size_t i = 0; i < LENGTH(cases); i++) {
        conf_unref(&rig->conf);
        assert_int_equal(conf_load_bytes(cases[i].file, SPAN_LIT(BASE "queue: {data_dir: data}\n"),
                                         NULL, &rig->conf, &rig->report),
                         ERR_OK);
        char wanted[PATH_MAX + 64];
        (void)snprintf(wanted, sizeof wanted, "%s%s%sdata", cases[i].below != NULL ? here : "",
                       cases[i].below != NULL ? "/" : "", cases[i].folder);
        assert_string_equal(rig->conf->queue.data_dir, wanted);
    }
}

/* ---- Snapshots ---- */

static void snapshots_are_independent(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE "hostname: first.test\n");
    struct conf *first = conf_ref(rig->conf);
    load_good(rig,
              BASE "hostname: second.test\n"); /* drops the loader's own reference to the first */
    assert_string_equal(first->hostname, "first.test");
    assert_string_equal(first->backends[0].conf.hostname, "first.test");
    assert_string_equal(rig->conf->hostname, "second.test");
    assert_int_equal(load(rig, "nonsense: true\n"),
                     ERR_INVAL); /* a bad file leaves what is held alone */
    assert_string_equal(first->hostname, "first.test");
    conf_unref(&first);
    assert_null(first);
    conf_unref(&first); /* nothing is nothing */
}

static void restart_is_named(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE "clients: [{name: a, networks: [\"::1\"]}]\n");
    struct conf *before = conf_ref(rig->conf);
    struct buf text;
    buf_init(&text, 4096);
    load_good(rig,
              "# moved\n" BASE "clients: [{name: b, networks: [\"::1\"]}]\nlog: {level: debug}\n");
    assert_int_equal(conf_restart_needed(before, rig->conf, &text), ERR_OK);
    assert_int_equal(buf_len(&text), 0);
    load_good(
        rig, BACKENDS ROUTES
        "listeners: [{protocol: smtp, bind: \"127.0.0.1:26\"}]\nqueue: {shards: 2}\nlanes: {bulk: {expires: 9h}}\n");
    assert_int_equal(conf_restart_needed(before, rig->conf, &text), ERR_OK);
    assert_string_equal(buf_text(&text), "listeners, queue.shards, lanes");
    buf_release(&text);
    conf_unref(&before);
}

static void places_of_values(void **state)
{
    struct rig *rig = *state;
    load_good(rig, BASE "queue: {shards: 2}\n");
    size_t line = 0;
    size_t column = 0;
    assert_true(conf_where(rig->conf, "queue.shards", &line, &column));
    assert_int_equal(line, 4);
    assert_int_equal(column, 17);
    assert_true(conf_where(rig->conf, "listeners.0.bind", &line, &column));
    assert_int_equal(line, 1);
    assert_false(conf_where(rig->conf, "queue.lease", &line, &column));
    assert_false(conf_where(rig->conf, "queue.nothing", &line, &column));
    assert_false(conf_where(rig->conf, "listeners.9.bind", &line, &column));
}

/* ---- Pages ---- */

static void effective_hides_secrets(void **state)
{
    struct rig *rig = *state;
    static const char *const environment[] = {"ENTRA_SECRET=s3cret", "HEAVE_QUEUE__SHARDS=4", NULL};
    rig->environment = environment;
    load_good(rig, example);
    struct buf text;
    buf_init(&text, (size_t)1 << 20);
    assert_int_equal(conf_print_effective(rig->conf, false, &text), ERR_OK);
    const char *shown = buf_text(&text);
    static const char *const secrets[] = {"s3cret", "hve secret", "aGVhdmUtc2lt", "abcdefgh"};
    for (size_t i = 0; i < LENGTH(secrets); i++) {
        assert_null(strstr(shown, secrets[i]));
    }
    assert_non_null(strstr(shown, "environment HEAVE_QUEUE__SHARDS"));
    assert_non_null(strstr(shown, "heave.yaml:17"));
    assert_non_null(strstr(shown, "default"));
    buf_reset(&text);
    assert_int_equal(conf_print_effective(rig->conf, true, &text), ERR_OK);
    json_t *json = json_loadb(buf_span(&text).data, buf_len(&text), 0, NULL);
    assert_non_null(json);
    assert_true(json_array_size(json_object_get(json, "options")) > 100);
    json_decref(json);
    rig->environment = NULL;
    load_good(rig, BASE "queue: {redis: \"redis://user:hidden@h:1/0\"}\n");
    buf_reset(&text);
    assert_int_equal(conf_print_effective(rig->conf, false, &text), ERR_OK);
    shown = buf_text(&text);
    assert_null(strstr(shown, "hidden"));
    assert_non_null(strstr(shown, "redis://user:***@h:1/0"));
    buf_release(&text);
}

static void schema_knows_the_options(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text, (size_t)1 << 20);
    assert_int_equal(conf_print_schema(&text), ERR_OK);
    json_t *json = json_loadb(buf_span(&text).data, buf_len(&text), 0, NULL);
    assert_non_null(json);
    assert_string_equal(json_string_value(json_object_get(json, "$schema")),
                        "https://json-schema.org/draft/2020-12/schema");
    const json_t *properties = json_object_get(json, "properties");
    assert_non_null(json_object_get(properties, "hostname"));
    assert_true(json_is_false(json_object_get(json, "additionalProperties")));
    const json_t *client = json_object_get(
        json_object_get(json_object_get(properties, "clients"), "items"), "properties");
    assert_non_null(json_object_get(client, "password_hash"));
    assert_non_null(json_object_get(client, "password_hash_file"));
    assert_null(json_object_get(client, "daily_recipients"));
    json_decref(json);
    buf_release(&text);
}

static void reference_lists_the_options(void **state)
{
    (void)state;
    struct buf text;
    buf_init(&text, (size_t)1 << 20);
    assert_int_equal(conf_print_reference(&text), ERR_OK);
    const char *page = buf_text(&text);
    static const char *const rows[] = {"| `hostname` |",      "| `listeners.*.max_recipients` |",
                                       "| `lanes.*.retry` |", "`lanes.bulk.on_unknown` | `hold`",
                                       "Or `password_file`.", "Not supported by this version"};
    for (size_t i = 0; i < LENGTH(rows); i++) {
        assert_non_null(strstr(page, rows[i]));
    }
    buf_release(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(durations),
        cmocka_unit_test(sizes),
        cmocka_unit_test(rates),
        cmocka_unit_test_setup_teardown(whole_example, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(small_file_gets_defaults, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(redis_addresses, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(admission_and_repeats, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(environment_expands, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(environment_overrides, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(bad_overrides, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(keys_of_bodies_come_from_a_file, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(secrets_come_from_files, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(huge_secret_file_is_refused, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(file_is_read, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(paths_are_absolute, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(snapshots_are_independent, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(restart_is_named, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(places_of_values, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(effective_hides_secrets, rig_setup, rig_teardown),
        cmocka_unit_test(schema_knows_the_options),
        cmocka_unit_test(reference_lists_the_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
