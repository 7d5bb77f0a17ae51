#include "bench/load/options.h"

#include <stddef.h>
#include <stdio.h>

enum option_kind {
    OPTION_TEXT,
    OPTION_NUMBER,
    OPTION_FLAG,
};

struct option_row {
    const char *name;
    enum option_kind kind;
    size_t offset;
    uint64_t min, max; /* numbers */
    const char *argument;
    const char *help;
};

#define AT(field) offsetof(struct load_options, field)

static const struct option_row OPTIONS[] = {
    {"server", OPTION_TEXT, AT(server), 0, 0, "HOST:PORT",
     "where to (127.0.0.1:2525; http: 127.0.0.1:8080)"},
    {"url", OPTION_TEXT, AT(url), 0, 0, "URL", "http: http[s]://HOST[:PORT][/PATH]"},
    {"to", OPTION_TEXT, AT(to), 0, 0, "ADDRESS",
     "recipient; with more of them to@dom means to1@dom, to2@dom, ..."},
    {"from", OPTION_TEXT, AT(from), 0, 0, "ADDRESS", "sender (the address of --to)"},
    {"messages", OPTION_NUMBER, AT(messages), 1, 1000000000, "N", "how many (1)"},
    {"recipients", OPTION_NUMBER, AT(recipients), 1, 100000, "R", "of each message (1)"},
    {"size", OPTION_NUMBER, AT(size_bytes), 2, 268435456, "B", "bytes of text, no header (2048)"},
    {"connections", OPTION_NUMBER, AT(connections), 1, 20000, "C", "at the same time (1)"},
    {"rate", OPTION_TEXT, AT(rate_text), 0, 0, "R/s", "messages a second, evenly spread"},
    {"duration", OPTION_NUMBER, AT(duration_s), 1, 31536000, "S",
     "stop after so many seconds; without --messages the only end"},
    {"timeout", OPTION_NUMBER, AT(timeout_s), 1, 86400, "S",
     "for connecting and for each answer (60)"},
    {"one-per-connection", OPTION_FLAG, AT(one_per_connection), 0, 0, NULL,
     "a new connection for every message"},
    {"no-pipelining", OPTION_FLAG, AT(no_pipelining), 0, 0, NULL,
     "smtp: await every reply even when PIPELINING is offered"},
    {"tls", OPTION_FLAG, AT(tls), 0, 0, NULL, "smtp: STARTTLS; http: https"},
    {"tls-implicit", OPTION_FLAG, AT(tls_implicit), 0, 0, NULL, "smtp: TLS from the first byte"},
    {"ca-file", OPTION_TEXT, AT(ca_file), 0, 0, "FILE", "trust these roots, not the system's"},
    {"auth", OPTION_TEXT, AT(auth), 0, 0, "U:P", "smtp: AUTH; http: Basic"},
    {"auth-login", OPTION_FLAG, AT(auth_login), 0, 0, NULL, "smtp: LOGIN although PLAIN is there"},
    {"key", OPTION_TEXT, AT(key), 0, 0, "KEY", "http: API key"},
    {"retry", OPTION_FLAG, AT(retry), 0, 0, NULL,
     "send again after temporary failures, up to 10 minutes a message"},
    {"ids", OPTION_TEXT, AT(ids), 0, 0, "FILE", "write every accepted id there, one a line"},
};
#define OPTION_COUNT (sizeof(OPTIONS) / sizeof(OPTIONS[0]))

void load_options_help(void)
{
    printf("heave-load: sends messages and measures how they are accepted.\n\n"
           "usage: heave-load smtp|http --to ADDRESS [options]\n\n");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char left[64];
        (void)snprintf(left, sizeof(left), "--%s %s", OPTIONS[i].name,
                       OPTIONS[i].argument != NULL ? OPTIONS[i].argument : "");
        printf("  %-22s %s\n", left, OPTIONS[i].help);
    }
    printf("\nPrints one line of JSON. Exit: 0 all accepted, 1 not all, 2 wrong usage.\n");
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

static int read_value(const struct option_row *row, const char *text, struct load_options *options)
{
    void *field = (char *)options + row->offset;
    switch (row->kind) {
    case OPTION_TEXT:
        *(const char **)field = text;
        return 0;
    case OPTION_NUMBER: {
        uint64_t value = 0;
        int rc = span_to_u64(span_of(text), row->max, &value);
        if (rc != 0 || value < row->min) {
            return ERR_INVAL;
        }
        *(uint64_t *)field = value;
        return 0;
    }
    case OPTION_FLAG:
        *(bool *)field = true;
        return 0;
    }
    UNREACHABLE();
}

/* Takes "--name=value", "--name" "value" or "--flag". */
static int read_option(int argc, char **argv, int *index, struct load_options *options,
                       struct err *err)
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
    if (row->kind == OPTION_FLAG && has_value) {
        return err_set(err, ERR_INVAL, "--%s takes no value.", row->name);
    }
    const char *value = has_value ? rest.data : "";
    if (row->kind != OPTION_FLAG && !has_value) {
        if (*index + 1 >= argc) {
            return err_set(err, ERR_INVAL, "--%s wants a value (%s).", row->name, row->argument);
        }
        value = argv[++*index];
    }
    if (read_value(row, value, options) != 0) {
        return err_set(err, ERR_INVAL, "\"%s\" is no good value for --%s (%s, %s).", value,
                       row->name, row->argument, row->help);
    }
    return 0;
}

/* Addresses go into commands, headers and JSON as they are, so only plain ones are taken. */
static int check_address(const char *flag, const char *text, struct err *err)
{
    struct span rest = span_of(text);
    for (size_t i = 0; i < rest.len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c <= 32 || c >= 127 || strchr("<>\"\\,;:()", c) != NULL) {
            return err_set(err, ERR_INVAL, "\"%s\" of --%s is no plain address.", text, flag);
        }
    }
    struct span local = span_cut(&rest, '@');
    if (local.len == 0 || local.len > 50 || rest.len == 0 || rest.len > 200 ||
        span_find(rest, '@') < rest.len) {
        return err_set(err, ERR_INVAL, "\"%s\" of --%s is no plain address.", text, flag);
    }
    return 0;
}

/* "host:port", "[::1]:port", or the host alone. */
static int read_server(struct span text, uint16_t usual_port, struct load_options *options,
                       struct err *err)
{
    struct span rest = text;
    struct span host;
    if (text.len > 0 && text.data[0] == '[') {
        rest = span_make(text.data + 1, text.len - 1);
        host = span_cut(&rest, ']');
        if (rest.len > 0 && rest.data[0] == ':') {
            rest = span_make(rest.data + 1, rest.len - 1);
        }
    } else {
        host = span_cut(&rest, ':');
    }
    uint64_t port = usual_port;
    if (host.len == 0 || host.len >= sizeof(options->host) ||
        (rest.len > 0 && span_to_u64(rest, UINT16_MAX, &port) != 0) || port == 0) {
        return err_set(err, ERR_INVAL, "\"%.*s\" is not HOST:PORT.", SPAN_FMT(text));
    }
    memcpy(options->host, host.data, host.len);
    options->host[host.len] = '\0';
    options->port = (uint16_t)port;
    return 0;
}

static int read_url(struct load_options *options, struct err *err)
{
    struct span rest = span_of(options->url);
    uint16_t usual_port = 80;
    if (span_istarts(rest, SPAN_LIT("https://"))) {
        rest = span_make(rest.data + 8, rest.len - 8);
        options->tls = true;
        usual_port = 443;
    } else if (span_istarts(rest, SPAN_LIT("http://"))) {
        rest = span_make(rest.data + 7, rest.len - 7);
    } else {
        return err_set(err, ERR_INVAL, "\"%s\" is no http or https URL.", options->url);
    }
    struct span server = span_make(rest.data, span_find(rest, '/'));
    struct span path = span_make(rest.data + server.len, rest.len - server.len);
    if (path.len >= sizeof(options->path)) {
        return err_set(err, ERR_INVAL, "The path of --url is too long.");
    }
    for (size_t i = 0; i < path.len; i++) {
        if (path.data[i] <= 32 || path.data[i] == 127) {
            return err_set(err, ERR_INVAL, "The path of --url holds a space or a control.");
        }
    }
    if (path.len > 1) {
        memcpy(options->path, path.data, path.len);
        options->path[path.len] = '\0';
    }
    return read_server(server, usual_port, options, err);
}

static int read_rate(struct load_options *options, struct err *err)
{
    struct span text = span_of(options->rate_text);
    if (span_ends(text, SPAN_LIT("/s"))) {
        text.len -= 2;
    }
    if (span_to_u64(text, 1000000, &options->rate) != 0 || options->rate == 0) {
        return err_set(err, ERR_INVAL, "\"%s\" of --rate is no number of messages a second.",
                       options->rate_text);
    }
    return 0;
}

/* Credentials stand in header lines of ours. */
static int check_secret(const char *flag, const char *text, struct err *err)
{
    for (const char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 32 || *c == 127) {
            return err_set(err, ERR_INVAL, "--%s holds a control character.", flag);
        }
    }
    return 0;
}

static int check_credentials(const struct load_options *options, struct err *err)
{
    if (options->auth != NULL && strchr(options->auth, ':') == NULL) {
        return err_set(err, ERR_INVAL, "--auth wants USER:PASSWORD.");
    }
    if (options->key != NULL && (options->kind != LOAD_HTTP || options->auth != NULL)) {
        return err_set(err, ERR_INVAL, "--key is for http, and not together with --auth.");
    }
    int rc = options->auth != NULL ? check_secret("auth", options->auth, err) : 0;
    return rc == 0 && options->key != NULL ? check_secret("key", options->key, err) : rc;
}

/* Options of the other kind would silently do nothing. */
static int check_kind(const struct load_options *options, struct err *err)
{
    bool smtp_only = options->tls_implicit || options->no_pipelining || options->auth_login;
    if (options->kind == LOAD_HTTP && smtp_only) {
        return err_set(err, ERR_INVAL,
                       "--tls-implicit, --no-pipelining and --auth-login are for smtp.");
    }
    if (options->kind == LOAD_SMTP && options->url != NULL) {
        return err_set(err, ERR_INVAL, "--url is for http; smtp takes --server HOST:PORT.");
    }
    if (options->url != NULL && options->server != NULL) {
        return err_set(err, ERR_INVAL, "--url and --server say the same; give one of them.");
    }
    return check_credentials(options, err);
}

static int finish(struct load_options *options, struct err *err)
{
    if (options->to == NULL) {
        return err_set(err, ERR_INVAL, "--to ADDRESS is missing; --help lists the options.");
    }
    options->from = options->from != NULL ? options->from : options->to;
    if (options->messages == 0) {
        options->messages = options->duration_s > 0 ? UINT64_MAX : 1;
    }
    int rc = check_kind(options, err);
    if (rc == 0) {
        rc = check_address("to", options->to, err);
    }
    if (rc == 0) {
        rc = check_address("from", options->from, err);
    }
    if (rc == 0 && options->rate_text != NULL) {
        rc = read_rate(options, err);
    }
    if (rc != 0 || options->url != NULL) {
        return rc != 0 ? rc : read_url(options, err);
    }
    const char *server = options->server != NULL ? options->server : "127.0.0.1";
    return read_server(span_of(server), options->kind == LOAD_SMTP ? 2525 : 8080, options, err);
}

static int read_kind(const char *word, enum load_kind *out, struct err *err)
{
    if (strcmp(word, "smtp") == 0) {
        *out = LOAD_SMTP;
    } else if (strcmp(word, "http") == 0) {
        *out = LOAD_HTTP;
    } else if (strcmp(word, "bulk") == 0) {
        return err_set(err, ERR_UNSUPPORTED,
                       "This version of heave has no /v1/messages:bulk, so there is no bulk load; "
                       "use http.");
    } else {
        return err_set(err, ERR_INVAL, "\"%s\" is no kind of load: smtp or http.", word);
    }
    return 0;
}

int load_options_read(int argc, char **argv, struct load_options *out, struct err *err)
{
    struct load_options options = {
        .recipients = 1,
        .size_bytes = 2048,
        .connections = 1,
        .timeout_s = 60,
        .path = "/v1/messages",
    };
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            return 1;
        }
    }
    if (argc < 2) {
        return err_set(err, ERR_INVAL, "Which load, smtp or http? --help lists the options.");
    }
    int rc = read_kind(argv[1], &options.kind, err);
    for (int i = 2; rc == 0 && i < argc; i++) {
        rc = read_option(argc, argv, &i, &options, err);
    }
    if (rc == 0) {
        rc = finish(&options, err);
    }
    if (rc == 0) {
        *out = options;
    }
    return rc;
}
