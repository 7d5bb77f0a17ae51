#include "gateway/cli/pages.h"

/* `heave find`: where is my mail. */

#define LIMIT_DEFAULT 50

struct find_options {
    struct cli_common common;
    const char *text;
    const char *since, *before, *lane, *state, *client;
    struct pages pages;
};

static int find_path(const struct find_options *o, struct buf *path)
{
    const struct {
        const char *name, *value;
    } rows[] = {
        {"q", o->text},    {"since", o->since}, {"before", o->before},
        {"lane", o->lane}, {"state", o->state}, {"client", o->client},
    };
    int status = buf_append(path, SPAN_LIT("/v1/messages"));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && status == ERR_OK; i++) {
        if (rows[i].value != NULL) {
            status = client_query(path, rows[i].name, rows[i].value);
        }
    }
    return status;
}

static int find(struct find_options *o)
{
    struct err err;
    struct client *client = NULL;
    if (client_open(&o->common, CLIENT_INSPECT, &client, &err) != ERR_OK) {
        return cli_usage(&cli_find_command, "%s", err.text);
    }
    struct buf path;
    buf_init(&path, 65536);
    const char *text = find_path(o, &path) == ERR_OK ? buf_text(&path) : NULL;
    int code = text != NULL ? pages_fetch(&cli_find_command, client, text, &o->pages)
                            : cli_fail(&cli_find_command, CLI_USAGE, "the text is too long");
    if (code == CLI_DONE) {
        code = pages_print(&cli_find_command, &o->pages, o->common.json);
    }
    buf_release(&path);
    client_close(&client);
    return code;
}

static int run_find(int argc, char **argv)
{
    enum { SINCE = CLI_OPTION_OWN, BEFORE, LANE, STATE, CLIENT, LIMIT, CURSOR };
    static const struct option options[] = {CLI_COMMON_OPTIONS,
                                            {"since", required_argument, NULL, SINCE},
                                            {"before", required_argument, NULL, BEFORE},
                                            {"lane", required_argument, NULL, LANE},
                                            {"state", required_argument, NULL, STATE},
                                            {"client", required_argument, NULL, CLIENT},
                                            {"limit", required_argument, NULL, LIMIT},
                                            {"cursor", required_argument, NULL, CURSOR},
                                            {0}};
    struct find_options o = {.pages.limit = LIMIT_DEFAULT};
    const char **const texts[] = {&o.since, &o.before, &o.lane, &o.state, &o.client};
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_find_command);
        }
        if (option >= SINCE && option <= CLIENT) {
            *texts[option - SINCE] = optarg;
        } else if (option == CURSOR) {
            mem_free(o.pages.cursor);
            o.pages.cursor = mem_dup(span_of(optarg));
        } else if (option == LIMIT && !pages_limit(optarg, &o.pages)) {
            return cli_usage(&cli_find_command, "--limit is 1 to %d", PAGES_LIMIT_MAX);
        } else if (option != LIMIT && !cli_common_take(&o.common, option, optarg)) {
            return cli_try_help(&cli_find_command);
        }
    }
    if (optind + 1 != argc || argv[optind][0] == '\0') {
        return cli_usage(&cli_find_command, "give one text to find");
    }
    o.text = argv[optind];
    int code = find(&o);
    pages_release(&o.pages);
    return code;
}

const struct cli_command cli_find_command = {
    .name = "find",
    .summary = "find messages by address, Message-ID, sender host or tag",
    .usage =
        "Usage: heave find TEXT [OPTIONS] [-c FILE | --url URL] [--json]\n"
        "\n"
        "Finds messages, newest first. TEXT is a whole address (of a recipient, in From, or of the\n"
        "reverse-path), @domain of a recipient, a Message-ID, the address or name of the host that\n"
        "submitted it, a tag, or an id; upper and lower case are the same.\n"
        "\n"
        "  -c, --config FILE   find the gateway by its configuration\n"
        "      --url URL       where it is (also HEAVE_URL); the key is HEAVE_API_KEY\n"
        "      --ca-file FILE  certificates it is verified with\n"
        "      --json          the API's own objects: {messages, next_cursor}\n"
        "      --since WHEN    accepted since a time (RFC 3339) or so long ago: 2d, 6h, 30m\n"
        "      --before WHEN   accepted before that\n"
        "      --lane LANE     only this lane\n"
        "      --client NAME   only this client's\n"
        "      --state STATE   unfinished, or with a recipient (failed, ...) or batch (held, ...) in it\n"
        "      --limit N       at most so many (50)\n"
        "      --cursor CURSOR go on where a former call ended\n"
        "\n"
        "Example: heave find -c heave.yaml anna@contoso.com --since 2d\n",
    .run = run_find,
};
