#include "bench/sim/conf.h"

#include <stdio.h>

static const char *const SERVICE_NAMES[SIM_SERVICE_COUNT] = {
    [SIM_HVE] = "hve",
    [SIM_ACS] = "acs",
    [SIM_GRAPH] = "graph",
    [SIM_TOKEN] = "token",
};

const char *sim_service_name(enum sim_service service)
{
    return SERVICE_NAMES[service];
}

int sim_service_find(struct span name, enum sim_service *out)
{
    for (size_t i = 0; i < SIM_SERVICE_COUNT; i++) {
        if (span_eq(name, span_of(SERVICE_NAMES[i]))) {
            *out = (enum sim_service)i;
            return 0;
        }
    }
    return ERR_NOTFOUND;
}

enum option_kind {
    OPTION_TEXT,
    OPTION_NUMBER,
    OPTION_LIST,
    OPTION_FLAG,
    OPTION_HVE_TLS,
    OPTION_REPEAT,
};

struct option_row {
    const char *name;
    enum option_kind kind;
    size_t offset;
    uint64_t max; /* numbers */
    const char *argument;
    const char *help;
};

#define AT(field) offsetof(struct sim_conf, field)
#define DAY_S 86400
#define MANY 1000000000000

static const struct option_row OPTIONS[] = {
    {"dir", OPTION_TEXT, AT(dir), 0, "DIR",
     "where ca.pem, the server certificate and sim.json are"},
    {"bind", OPTION_TEXT, AT(bind), 0, "ADDRESS", "address of every listener (127.0.0.1)"},
    {"hve-port", OPTION_NUMBER, AT(ports[SIM_HVE]), 65535, "N",
     "0: any free port (default of all ports)"},
    {"acs-port", OPTION_NUMBER, AT(ports[SIM_ACS]), 65535, "N", ""},
    {"graph-port", OPTION_NUMBER, AT(ports[SIM_GRAPH]), 65535, "N", ""},
    {"token-port", OPTION_NUMBER, AT(ports[SIM_TOKEN]), 65535, "N", ""},
    {"control-port", OPTION_NUMBER, AT(ports[SIM_PORT_CONTROL]), 65535, "N", "plain HTTP"},
    {"fault", OPTION_LIST, AT(faults), 0, "SPEC", "service:kind[:key=value]..., see fault.h"},
    {"hve-account", OPTION_LIST, AT(hve_accounts), 0, "U:P", "adds an HVE account"},
    {"client", OPTION_LIST, AT(clients), 0, "ID:SECRET", "adds an application"},
    {"mailbox", OPTION_LIST, AT(mailboxes), 0, "ADDRESS", "adds a Graph mailbox"},
    {"domain", OPTION_LIST, AT(domains), 0, "DOMAIN", "adds an accepted and linked domain"},
    {"acs-sender", OPTION_LIST, AT(acs_senders), 0, "ADDRESS",
     "only these senders (else the usual names)"},
    {"acs-key", OPTION_TEXT, AT(acs_key), 0, "BASE64", "the access key"},
    {"tenant", OPTION_TEXT, AT(tenant), 0, "NAME", "the tenant (sim)"},
    {"keep-bodies", OPTION_TEXT, AT(keep_bodies), 0, "DIR", "store every accepted message there"},
    {"hve-tls", OPTION_HVE_TLS, AT(hve_tls), 0, "MODE", "starttls | implicit | off"},
    {"hve-open", OPTION_FLAG, AT(hve_open), 0, NULL, "a sink: no AUTH, no identity, any recipient"},
    {"hve-ehlo", OPTION_TEXT, AT(hve_ehlo), 0, "LIST", "EHLO keywords, comma separated"},
    {"hve-max-bytes", OPTION_NUMBER, AT(hve_max_bytes), MANY, "N", "message size (10485760)"},
    {"hve-min-token-life", OPTION_NUMBER, AT(hve_min_token_life_s), DAY_S, "S",
     "5.7.142 below it (600)"},
    {"max-recipients", OPTION_NUMBER, AT(max_recipients), 100000, "N",
     "HVE and ACS, per message (50)"},
    {"acs-quota", OPTION_TEXT, AT(acs_quota), 0, "LIST", "off | 30/m,100/h (default)"},
    {"acs-status-quota", OPTION_TEXT, AT(acs_status_quota), 0, "LIST",
     "off | 60/m,200/h (default)"},
    {"acs-max-bytes", OPTION_NUMBER, AT(acs_max_bytes), MANY, "N", "request size (10485760)"},
    {"acs-drift", OPTION_NUMBER, AT(acs_drift_s), DAY_S, "S", "clock drift allowed (300)"},
    {"acs-poll", OPTION_NUMBER, AT(acs_poll_s), DAY_S, "S", "retry-after of a 202 (30)"},
    {"acs-running-ms", OPTION_NUMBER, AT(acs_running_ms), MANY, "MS",
     "how long an operation runs (0)"},
    {"acs-repeat", OPTION_REPEAT, AT(acs_repeat), 0, "MODE",
     "used Operation-Id: 202-same | 409 | 400"},
    {"graph-concurrency", OPTION_NUMBER, AT(graph_concurrency), 100000, "N",
     "per mailbox (4); 0: no limit"},
    {"graph-quota", OPTION_TEXT, AT(graph_quota), 0, "LIST", "off | 10000/10m (default)"},
    {"graph-max-bytes", OPTION_NUMBER, AT(graph_max_bytes), MANY, "N", "request size (4194304)"},
    {"graph-max-recipients", OPTION_NUMBER, AT(graph_max_recipients), 100000, "N",
     "per message (500)"},
    {"graph-daily-recipients", OPTION_NUMBER, AT(graph_daily_recipients), MANY, "N",
     "per mailbox and 24 h (10000); 0: no limit"},
    {"graph-daily-status", OPTION_NUMBER, AT(graph_daily_status), 599, "CODE",
     "403 (default), 400 or 429"},
    {"graph-retry-after", OPTION_NUMBER, AT(graph_retry_after_s), DAY_S, "S",
     "of a concurrency 429 (2)"},
    {"hve-latency-ms", OPTION_NUMBER, AT(latency_ms[SIM_HVE]), 600000, "MS",
     "before the last answer (0)"},
    {"acs-latency-ms", OPTION_NUMBER, AT(latency_ms[SIM_ACS]), 600000, "MS",
     "before each answer (0)"},
    {"graph-latency-ms", OPTION_NUMBER, AT(latency_ms[SIM_GRAPH]), 600000, "MS", ""},
    {"token-latency-ms", OPTION_NUMBER, AT(latency_ms[SIM_TOKEN]), 600000, "MS", ""},
    {"token-lifetime", OPTION_NUMBER, AT(token_lifetime_s), DAY_S, "S", "of issued tokens (3599)"},
    {"token-roles", OPTION_TEXT, AT(token_roles), 0, "LIST", "roles in tokens; none for no role"},
    {"ledger-entries", OPTION_NUMBER, AT(ledger_entries), 100000000, "N",
     "recipients kept (5000000)"},
    {"retry-grace-ms", OPTION_NUMBER, AT(retry_grace_ms), 60000, "MS",
     "requests this soon after a 429 were on their way (100)"},
    {"seed", OPTION_NUMBER, AT(seed), UINT64_MAX, "N", "of the faults' chances (random)"},
    {"http1-only", OPTION_FLAG, AT(http1_only), 0, NULL, "do not offer HTTP/2"},
};
#define OPTION_COUNT (sizeof(OPTIONS) / sizeof(OPTIONS[0]))

static void conf_defaults(struct sim_conf *conf)
{
    *conf = (struct sim_conf){
        .bind = "127.0.0.1",
        .hve_accounts = {.items = {"hve@contoso.test:hve-password"}, .count = 1},
        .clients = {.items = {"heave:sim-secret"}, .count = 1},
        .mailboxes = {.items = {"notify1@contoso.test", "notify2@contoso.test"}, .count = 2},
        .domains = {.items = {"contoso.test"}, .count = 1},
        .tenant = "sim",
        .acs_key = "aGVhdmUtc2ltLWFjcy1hY2Nlc3Mta2V5LTAxMjM0NTY3",
        .hve_max_bytes = 10485760,
        .hve_min_token_life_s = 600,
        .max_recipients = 50,
        .acs_quota = "30/m,100/h",
        .acs_max_bytes = 10485760,
        .acs_drift_s = 300,
        .acs_poll_s = 30,
        .graph_concurrency = 4,
        .graph_quota = "10000/10m",
        .graph_max_bytes = 4194304,
        .graph_max_recipients = 500,
        .graph_daily_recipients = 10000,
        .graph_daily_status = 403,
        .graph_retry_after_s = 2,
        .token_lifetime_s = 3599,
        .token_roles = "Mail.Send,SMTP.SendAsApp",
        .ledger_entries = 5000000,
        .retry_grace_ms = 100,
    };
}

static void conf_help(void)
{
    printf("heave-sim: simulators of HVE, ACS Email, Graph and the token service.\n\n"
           "usage: heave-sim --dir DIR [options]\n\n");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char left[64];
        (void)snprintf(left, sizeof(left), "--%s %s", OPTIONS[i].name,
                       OPTIONS[i].argument != NULL ? OPTIONS[i].argument : "");
        printf("  %-30s %s\n", left, OPTIONS[i].help);
    }
    printf(
        "\nControl port: GET /summary /deliveries /bodies /fault, POST /reset /fault, DELETE /fault.\n");
}

static int read_choice(const char *text, const char *const *names, size_t count, int *out)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (int)i;
            return 0;
        }
    }
    return ERR_INVAL;
}

static int read_value(const struct option_row *row, const char *text, struct sim_conf *conf)
{
    static const char *const TLS_NAMES[] = {"starttls", "implicit", "off"};
    static const char *const REPEAT_NAMES[] = {"202-same", "409", "400"};
    void *field = (char *)conf + row->offset;
    int choice = 0;
    int result = 0;

    switch (row->kind) {
    case OPTION_TEXT:
        *(const char **)field = text;
        break;
    case OPTION_NUMBER:
        result = span_to_u64(span_of(text), row->max, (uint64_t *)field);
        break;
    case OPTION_LIST: {
        struct sim_list *list = field;
        if (list->count == SIM_LIST_MAX) {
            return ERR_LIMIT;
        }
        list->items[list->count++] = text;
        break;
    }
    case OPTION_FLAG:
        *(bool *)field = true;
        break;
    case OPTION_HVE_TLS:
        result = read_choice(text, TLS_NAMES, 3, &choice);
        conf->hve_tls = (enum sim_hve_tls)choice;
        break;
    case OPTION_REPEAT:
        result = read_choice(text, REPEAT_NAMES, 3, &choice);
        conf->acs_repeat = (enum sim_repeat)choice;
        break;
    }
    return result;
}

static const struct option_row *find_option(struct span name)
{
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if (span_eq(name, span_of(OPTIONS[i].name))) {
            return &OPTIONS[i];
        }
    }
    return NULL;
}

static int check_pairs(const struct sim_list *list, const char *flag, struct err *err)
{
    for (size_t i = 0; i < list->count; i++) {
        if (strchr(list->items[i], ':') == NULL) {
            return err_set(err, ERR_INVAL, "--%s wants NAME:SECRET, not \"%s\".", flag,
                           list->items[i]);
        }
    }
    return 0;
}

static int conf_finish(struct sim_conf *conf, struct err *err)
{
    if (conf->dir == NULL) {
        return err_set(err, ERR_INVAL, "--dir DIR is missing; --help lists the options.");
    }
    if (conf->max_recipients == 0) {
        return err_set(err, ERR_INVAL, "--max-recipients must be at least 1.");
    }
    if (conf->acs_status_quota == NULL) {
        /* Whoever switches the send quota off wants no quota at all. */
        conf->acs_status_quota = strcmp(conf->acs_quota, "off") == 0 ? "off" : "60/m,200/h";
    }
    int result = check_pairs(&conf->hve_accounts, "hve-account", err);
    if (result == 0) {
        result = check_pairs(&conf->clients, "client", err);
    }
    return result;
}

/* Splits "--name=value" or "--name" "value"; flags without argument take none. */
static int read_option(int argc, char **argv, int *index, struct sim_conf *conf, struct err *err)
{
    const char *word = argv[*index];
    struct span rest = span_of(word);
    if (!span_starts(rest, SPAN_LIT("--"))) {
        return err_set(err, ERR_INVAL, "\"%s\" is not an option; --help lists them.", word);
    }
    rest = span_make(rest.data + 2, rest.len - 2);
    bool has_value = span_find(rest, '=') < rest.len;
    const struct option_row *row = find_option(span_cut(&rest, '='));
    if (row == NULL) {
        return err_set(err, ERR_INVAL, "There is no option \"%s\"; --help lists them.", word);
    }
    const char *value = has_value ? rest.data : "";
    if (row->kind != OPTION_FLAG && !has_value) {
        if (*index + 1 >= argc) {
            return err_set(err, ERR_INVAL, "--%s wants a value (%s).", row->name, row->argument);
        }
        value = argv[++*index];
    }
    if (read_value(row, value, conf) != 0) {
        return err_set(err, ERR_INVAL, "\"%s\" is no good value for --%s (%s).", value, row->name,
                       row->argument != NULL ? row->argument : "no value");
    }
    return 0;
}

int sim_conf_read(int argc, char **argv, struct sim_conf *out, struct err *err)
{
    struct sim_conf conf;
    conf_defaults(&conf);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            conf_help();
            return 1;
        }
        int result = read_option(argc, argv, &i, &conf, err);
        if (result != 0) {
            return result;
        }
    }
    int result = conf_finish(&conf, err);
    if (result == 0) {
        *out = conf;
    }
    return result;
}

struct span sim_list_secret(const struct sim_list *list, struct span name, struct span *out_name)
{
    for (size_t i = list->count; i > 0; i--) {
        struct span rest = span_of(list->items[i - 1]);
        struct span known = span_cut(&rest, ':');
        if (span_ieq(known, name)) {
            if (out_name != NULL) {
                *out_name = known;
            }
            return rest;
        }
    }
    return (struct span){0};
}

const char *sim_list_find(const struct sim_list *list, struct span item)
{
    for (size_t i = 0; i < list->count; i++) {
        if (span_ieq(span_of(list->items[i]), item)) {
            return list->items[i];
        }
    }
    return NULL;
}

struct span sim_address_domain(struct span address)
{
    for (size_t i = address.len; i > 0; i--) {
        if (address.data[i - 1] == '@') {
            return span_make(address.data + i, address.len - i);
        }
    }
    return (struct span){0};
}

bool sim_address_internal(const struct sim_conf *conf, struct span address)
{
    struct span domain = sim_address_domain(address);
    return domain.len > 0 && sim_list_find(&conf->domains, domain) != NULL;
}
