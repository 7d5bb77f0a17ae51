#include "gateway/cli/status_command.h"

#include <string.h>

/* `heave explain`: what was decided about a message, from what the queue keeps of it: who sent it,
 * how it was split, what each batch is doing and why, the services' last words, what comes next. */

static const char *text_or(const json_t *object, const char *name, const char *otherwise)
{
    const char *text = status_text(object, name);
    return text[0] != '\0' ? text : otherwise;
}

static long long number_of(const json_t *object, const char *name)
{
    return (long long)json_integer_value(json_object_get(object, name));
}

/* Peers' text, as a terminal may get it. */
static void say(const char *format, ...) PRINTF_LIKE(1, 2);
static void say(const char *format, ...)
{
    char line[3000];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    cli_clean(line);
    (void)puts(line);
}

static void explain_origin(const json_t *message)
{
    say("message %s: %s", status_text(message, "id"), status_text(message, "state"));
    say("  subject    %s", text_or(message, "subject", "(none)"));
    say("  accepted   %s from client %s, host %s", status_text(message, "accepted_at"),
        text_or(message, "client", "(none)"), text_or(message, "source", "(not known)"));
    say("  sender     %s in From, %s as reverse-path", text_or(message, "from", "(none)"),
        text_or(message, "reverse_path", "<>"));
    say("  lane       %s, given up at %s", status_text(message, "lane"),
        text_or(message, "expires_at", "(never)"));
}

/* What comes next for a batch, of which `item` is a recipient. */
static void explain_next(const json_t *item)
{
    const char *state = status_text(item, "batch_state");
    const char *reason = status_text(item, "reason");
    if (strcmp(state, "delayed") == 0) {
        say("    next: %s at %s", number_of(item, "attempts") > 0 ? "tried again" : "tried",
            text_or(item, "next_attempt_at", "(not known)"));
    } else if (strcmp(state, "held") == 0) {
        say("    next: nothing until somebody releases it (heave queue release): %s",
            reason[0] != '\0' ? reason : "no reason was given");
    } else if (strcmp(state, "ready") == 0) {
        say("    next: sent as soon as the backend has room for its lane");
    } else if (strcmp(state, "done") == 0) {
        say("    next: nothing, it has ended%s%s", reason[0] != '\0' ? ": " : "", reason);
    } else {
        say("    next: what the service answers");
    }
}

static size_t recipients_of(const json_t *recipients, long long batch)
{
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(recipients); i++) {
        count += number_of(json_array_get(recipients, i), "batch") == batch ? 1 : 0;
    }
    return count;
}

/* Recipients stand together by batch. */
static void explain_batches(const json_t *recipients)
{
    long long batch = -1;
    size_t count = json_array_size(recipients);
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(recipients, i);
        if (number_of(item, "batch") != batch) {
            batch = number_of(item, "batch");
            const char *account = status_text(item, "account");
            say("  batch %lld: %zu recipient(s) through %s%s%s: %s, tried %lld time(s)", batch,
                recipients_of(recipients, batch), status_text(item, "backend"),
                account[0] != '\0' ? " as " : "", account, status_text(item, "batch_state"),
                number_of(item, "attempts"));
            explain_next(item);
        }
        const char *at = status_text(item, "at"); /* of one that was never tried there is none */
        say("    %s: %s%s%s%s%s", status_text(item, "address"), status_text(item, "state"),
            at[0] != '\0' ? " since " : "", at,
            status_text(item, "last_reply")[0] != '\0' ? "; last answer: " : "",
            status_text(item, "last_reply"));
    }
}

static int explain(const struct cli_common *common, const char *id)
{
    struct err err;
    struct client *client = NULL;
    if (client_open(common, CLIENT_INSPECT, &client, &err) != ERR_OK) {
        return cli_usage(&cli_explain_command, "%s", err.text);
    }
    json_t *message = NULL;
    int code = status_fetch(&cli_explain_command, client, id, &message);
    if (code == CLI_DONE && common->json) {
        code = status_print_json(&cli_explain_command, message);
    } else if (code == CLI_DONE) {
        explain_origin(message);
        explain_batches(json_object_get(message, "recipients"));
        code = cli_write(&cli_explain_command, SPAN_LIT(""));
    }
    json_decref(message);
    client_close(&client);
    return code;
}

static int run_explain(int argc, char **argv)
{
    static const struct option options[] = {CLI_COMMON_OPTIONS, {0}};
    struct cli_common common = {0};
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option == 'h') {
            return cli_help(&cli_explain_command);
        }
        if (!cli_common_take(&common, option, optarg)) {
            return cli_try_help(&cli_explain_command);
        }
    }
    if (optind + 1 != argc) {
        return cli_usage(&cli_explain_command, "give one message id");
    }
    return explain(&common, argv[optind]);
}

const struct cli_command cli_explain_command = {
    .name = "explain",
    .summary = "explain what was decided about a message and what comes next",
    .usage =
        "Usage: heave explain ID [-c FILE | --url URL] [--json]\n"
        "\n"
        "Says who submitted a message, how it was split, and for each batch where it goes, how often it was\n"
        "tried, what the service said last, what comes next and when.\n"
        "\n"
        "  -c, --config FILE   find the gateway by its configuration\n"
        "      --url URL       where it is (also HEAVE_URL); the key is HEAVE_API_KEY\n"
        "      --ca-file FILE  certificates it is verified with\n"
        "      --json          the API's own object\n"
        "\n"
        "Example: heave explain -c heave.yaml 01JDF3Q8ZK5W1T7R9N2B4C6D8E-0\n",
    .run = run_explain,
};
