#include "gateway/cli/status_command.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/conf.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* `heave send`: submits a message made of options, an .eml file, a folder of them or standard
 * input, and follows it. */

#define MESSAGE_BYTES_MAX ((size_t)256 << 20)

struct send_options {
    struct cli_common common;
    const char *from;
    json_t *to, *cc, *bcc;
    const char *subject;
    const char *text;
    const char *html;
    json_t *attachments;
    json_t *headers;
    const char *lane;
    const char *key; /* Idempotency-Key */
    bool wait;
    int64_t timeout_ms; /* of the wait; 0: none */
};

enum send_option {
    OPTION_FROM = CLI_OPTION_OWN,
    OPTION_TO,
    OPTION_CC,
    OPTION_BCC,
    OPTION_SUBJECT,
    OPTION_TEXT,
    OPTION_HTML,
    OPTION_ATTACH,
    OPTION_HEADER,
    OPTION_LANE,
    OPTION_KEY,
    OPTION_WAIT,
    OPTION_TIMEOUT,
};

/* What was sent and where it stands. */
struct sent {
    json_t *answers; /* the API's answers, each with "file" */
    int code;        /* the worst exit code so far */
};

/* ---- Reading the options ---- */

/* "a@x, b@y" adds two. False when it is not UTF-8. */
static bool add_addresses(json_t *list, const char *text)
{
    struct span rest = span_of(text);
    while (rest.len > 0) {
        struct span one = span_trim(span_cut(&rest, ','));
        if (one.len > 0 && json_array_append_new(list, json_stringn(one.data, one.len)) != 0) {
            return false;
        }
    }
    return true;
}

static bool add_header(json_t *headers, const char *text)
{
    const char *colon = strchr(text, ':');
    if (colon == NULL || colon == text) {
        return false;
    }
    char name[200];
    (void)snprintf(name, sizeof name, "%.*s", (int)(colon - text), text);
    struct span value = span_trim(span_of(colon + 1));
    return json_object_set_new(headers, name, json_stringn(value.data, value.len)) == 0;
}

static const char *content_type_of(const char *name)
{
    static const char *const types[][2] = {
        {".pdf", "application/pdf"},
        {".png", "image/png"},
        {".jpg", "image/jpeg"},
        {".jpeg", "image/jpeg"},
        {".gif", "image/gif"},
        {".txt", "text/plain"},
        {".log", "text/plain"},
        {".csv", "text/csv"},
        {".html", "text/html"},
        {".json", "application/json"},
        {".xml", "application/xml"},
        {".zip", "application/zip"},
        {".ics", "text/calendar"},
        {".docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"},
        {".xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"},
    };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot != NULL && i < sizeof types / sizeof types[0]; i++) {
        if (strcasecmp(dot, types[i][0]) == 0) {
            return types[i][1];
        }
    }
    return "application/octet-stream";
}

static int add_attachment(json_t *attachments, const char *path)
{
    struct buf bytes;
    struct buf encoded;
    struct err err;
    buf_init(&bytes, MESSAGE_BYTES_MAX);
    buf_init(&encoded, MESSAGE_BYTES_MAX * 2);
    int code = CLI_DONE;
    if (cli_read_file(path, &bytes, &err) != ERR_OK) {
        code = cli_fail(&cli_send_command, CLI_USAGE, "%s", err.text);
    } else if (codec_base64_encode(buf_span(&bytes), 0, &encoded) != ERR_OK) {
        code = cli_fail(&cli_send_command, CLI_USAGE, "%s is too large", path);
    } else {
        const char *slash = strrchr(path, '/');
        const char *name = slash != NULL ? slash + 1 : path;
        struct span content = buf_span(&encoded);
        json_t *item = json_pack("{s:s, s:s, s:s%}", "name", name, "content_type",
                                 content_type_of(name), "content",
                                 content.data != NULL ? content.data : "", content.len);
        if (json_array_append_new(attachments, item) != 0) {
            code = cli_fail(&cli_send_command, CLI_USAGE, "the name of %s is not UTF-8", path);
        }
    }
    buf_release(&bytes);
    buf_release(&encoded);
    return code;
}

static int take_timeout(struct send_options *o, const char *text)
{
    if (conf_parse_duration(span_of(text), &o->timeout_ms) != ERR_OK || o->timeout_ms == 0) {
        return cli_usage(&cli_send_command, "--timeout takes a duration such as 30s or 10m");
    }
    return CLI_DONE;
}

static int take_option(struct send_options *o, int option, const char *argument)
{
    bool is_good = true;
    switch ((enum send_option)option) {
    case OPTION_FROM:
        o->from = argument;
        break;
    case OPTION_TO:
        is_good = add_addresses(o->to, argument);
        break;
    case OPTION_CC:
        is_good = add_addresses(o->cc, argument);
        break;
    case OPTION_BCC:
        is_good = add_addresses(o->bcc, argument);
        break;
    case OPTION_SUBJECT:
        o->subject = argument;
        break;
    case OPTION_TEXT:
        o->text = argument;
        break;
    case OPTION_HTML:
        o->html = argument;
        break;
    case OPTION_ATTACH:
        return add_attachment(o->attachments, argument);
    case OPTION_HEADER:
        if (!add_header(o->headers, argument)) {
            return cli_usage(&cli_send_command, "--header takes \"Name: value\"");
        }
        break;
    case OPTION_LANE:
        o->lane = argument;
        break;
    case OPTION_KEY:
        if (strpbrk(argument, "\r\n") != NULL) {
            return cli_usage(&cli_send_command, "the idempotency key must be one line");
        }
        o->key = argument;
        break;
    case OPTION_WAIT:
        o->wait = true;
        break;
    case OPTION_TIMEOUT:
        return take_timeout(o, argument);
    }
    return is_good ? CLI_DONE : cli_usage(&cli_send_command, "the addresses are not UTF-8");
}

/* ---- Submitting ---- */

static void worse(struct sent *sent, int code)
{
    /* What stops everything counts most, then what a second try may mend. */
    static const int order[] = {CLI_DONE, CLI_REFUSED, CLI_TRY_LATER, CLI_UNREACHABLE};
    size_t now = 0;
    size_t then = 0;
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        now = order[i] == code ? i : now;
        then = order[i] == sent->code ? i : then;
    }
    sent->code = now > then ? code : sent->code;
}

/* Notes the answer of an accepted message. */
static int take_answer(struct sent *sent, const struct client_reply *reply, const char *file)
{
    struct span body = buf_span(&reply->body);
    json_t *answer = json_loadb(body.data != NULL ? body.data : "", body.len, 0, NULL);
    if (status_text(answer, "id")[0] == '\0') {
        json_decref(answer);
        return cli_fail(&cli_send_command, CLI_UNREACHABLE,
                        "the answer is not from a heave gateway");
    }
    if (file != NULL) {
        (void)json_object_set_new(answer, "file", json_string(file));
    }
    const json_t *rejected = json_object_get(answer, "rejected");
    for (size_t i = 0; i < json_array_size(rejected); i++) {
        const json_t *item = json_array_get(rejected, i);
        (void)cli_fail(&cli_send_command, 0, "not accepted: %s: %s", status_text(item, "address"),
                       status_text(item, "reason"));
    }
    (void)json_array_append_new(sent->answers, answer);
    return json_array_size(rejected) > 0 ? CLI_REFUSED : CLI_DONE;
}

static int submit(const struct send_options *o, struct client *client, const char *path,
                  const char *content_type, struct span body, const char *file, struct sent *sent)
{
    struct err err;
    struct client_reply reply;
    struct buf header;
    buf_init(&header, 4096);
    const char *line = NULL;
    if (o->key != NULL) {
        /* The messages of a folder need a key each. */
        int status = buf_printf(&header, "Idempotency-Key: %s%s%s", o->key, file != NULL ? "/" : "",
                                file != NULL ? file : "");
        line = status == ERR_OK ? buf_text(&header) : NULL;
    }
    const struct client_call call = {
        .method = "POST", .path = path, .content_type = content_type, .body = body, .header = line};
    int code = CLI_DONE;
    if (o->key != NULL && line == NULL) {
        buf_release(&header);
        return cli_usage(&cli_send_command, "the idempotency key is too long");
    }
    if (client_send(client, &call, &reply, &err) != ERR_OK) {
        code = cli_fail(&cli_send_command, CLI_UNREACHABLE, "%s", err.text);
    } else if (reply.status != 202) {
        if (file != NULL) {
            (void)cli_fail(&cli_send_command, 0, "%s:", file);
        }
        code = client_refused(&cli_send_command, &reply);
        code = code == CLI_DONE ? CLI_UNREACHABLE : code; /* a 2xx that promises nothing */
    } else {
        code = take_answer(sent, &reply, file);
    }
    worse(sent, code);
    client_reply_release(&reply);
    buf_release(&header);
    return code;
}

static void set_text(json_t *message, const char *name, const char *text)
{
    if (text != NULL) {
        (void)json_object_set_new(message, name, json_string(text));
    }
}

static json_t *compose(const struct send_options *o, const char *text)
{
    json_t *message = json_object();
    set_text(message, "from", o->from);
    set_text(message, "subject", o->subject);
    set_text(message, "text", text);
    set_text(message, "html", o->html);
    set_text(message, "lane", o->lane);
    json_t *const lists[] = {o->to, o->cc, o->bcc, o->attachments};
    static const char *const names[] = {"to", "cc", "bcc", "attachments"};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        if (json_array_size(lists[i]) > 0) {
            (void)json_object_set(message, names[i], lists[i]);
        }
    }
    if (json_object_size(o->headers) > 0) {
        (void)json_object_set(message, "headers", o->headers);
    }
    return message;
}

static int send_composed(const struct send_options *o, struct client *client, struct sent *sent)
{
    struct buf typed;
    struct err err;
    buf_init(&typed, MESSAGE_BYTES_MAX);
    const char *text = o->text;
    if (text != NULL && strcmp(text, "-") == 0) {
        int status = cli_read_file("-", &typed, &err);
        text = status == ERR_OK ? buf_text(&typed) : NULL;
        if (text == NULL) {
            buf_release(&typed);
            return cli_fail(&cli_send_command, CLI_USAGE, "%s",
                            status == ERR_OK ? "the text is too long" : err.text);
        }
    }
    json_t *message = compose(o, text);
    struct buf body;
    buf_init(&body, MESSAGE_BYTES_MAX * 2);
    int status = status_dump_json(message, JSON_COMPACT, &body);
    json_decref(message);
    buf_release(&typed);
    int code = status == ERR_OK
                   ? submit(o, client, "/v1/messages", "application/json", buf_span(&body), NULL,
                            sent)
                   : cli_fail(&cli_send_command, CLI_USAGE, "the message is too large");
    buf_release(&body);
    return code;
}

/* "/v1/messages?from=...&to=...&lane=..." for a message that is ready. */
static int raw_path(const struct send_options *o, struct buf *path)
{
    int status = buf_append(path, SPAN_LIT("/v1/messages"));
    if (status == ERR_OK && o->from != NULL) {
        status = client_query(path, "from", o->from);
    }
    json_t *const lists[] = {o->to, o->cc, o->bcc};
    for (size_t list = 0; list < sizeof lists / sizeof lists[0]; list++) {
        for (size_t i = 0; i < json_array_size(lists[list]) && status == ERR_OK; i++) {
            status = client_query(path, "to", json_string_value(json_array_get(lists[list], i)));
        }
    }
    return status == ERR_OK && o->lane != NULL ? client_query(path, "lane", o->lane) : status;
}

static int send_file(const struct send_options *o, struct client *client, const char *file,
                     const char *shown, struct sent *sent)
{
    struct buf bytes;
    struct buf path;
    struct err err;
    buf_init(&bytes, MESSAGE_BYTES_MAX);
    buf_init(&path, (size_t)1 << 20);
    int code = CLI_DONE;
    const char *text = raw_path(o, &path) == ERR_OK ? buf_text(&path) : NULL;
    if (text == NULL) {
        code = cli_fail(&cli_send_command, CLI_USAGE,
                        "there are too many recipients for a query; put them in the header");
    } else if (cli_read_file(file, &bytes, &err) != ERR_OK) {
        code = cli_fail(&cli_send_command, CLI_REFUSED, "%s", err.text);
        worse(sent, code);
    } else {
        code = submit(o, client, text, "message/rfc822", buf_span(&bytes), shown, sent);
    }
    buf_release(&bytes);
    buf_release(&path);
    return code;
}

static int is_eml(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);
    return len > 4 && strcasecmp(entry->d_name + len - 4, ".eml") == 0 ? 1 : 0;
}

static int send_folder(const struct send_options *o, struct client *client, const char *folder,
                       struct sent *sent)
{
    struct dirent **entries = NULL;
    int count = scandir(folder, &entries, is_eml, alphasort);
    if (count < 0) {
        return cli_fail(&cli_send_command, CLI_REFUSED, "%s cannot be read: %s", folder,
                        strerror(errno));
    }
    bool shows_progress = isatty(STDERR_FILENO) == 1;
    int code = CLI_DONE;
    for (int i = 0; i < count; i++) {
        /* Without a gateway the rest would only fail the same way. */
        if (code != CLI_UNREACHABLE && code != CLI_USAGE) {
            char path[4096];
            (void)snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
            code = send_file(o, client, path, entries[i]->d_name, sent);
        }
        if (shows_progress) {
            (void)fprintf(stderr, "\r%d of %d sent%s", i + 1, count, i + 1 == count ? "\n" : "");
        }
        mem_free(entries[i]);
    }
    mem_free(entries);
    if (count == 0) {
        return cli_fail(&cli_send_command, CLI_REFUSED, "%s holds no .eml file", folder);
    }
    return code == CLI_USAGE ? code : sent->code;
}

/* ---- Following ---- */

struct progress {
    size_t total;
    size_t open;
    size_t delivered;
};

static void count_message(struct progress *progress, const json_t *message)
{
    progress->total += status_recipients(message);
    progress->open += status_count(message, "queued");
    progress->delivered += status_count(message, "delivered");
}

static void show_progress(const struct progress *progress)
{
    if (isatty(STDERR_FILENO) == 1) {
        (void)fprintf(stderr, "\r%zu of %zu recipients finished, %zu not delivered%s",
                      progress->total - progress->open, progress->total,
                      progress->total - progress->open - progress->delivered,
                      progress->open == 0 ? "\n" : "");
    }
}

/* Fetches all messages into `messages`; those that are finished are not asked for again. */
static int look(struct client *client, const json_t *answers, json_t *messages,
                struct progress *progress)
{
    *progress = (struct progress){0};
    for (size_t i = 0; i < json_array_size(answers); i++) {
        json_t *message = json_array_get(messages, i);
        if (message == NULL || status_count(message, "queued") > 0 ||
            status_recipients(message) == 0) {
            json_t *fresh = NULL;
            int code = status_fetch(&cli_send_command, client,
                                    status_text(json_array_get(answers, i), "id"), &fresh);
            if (code != CLI_DONE) {
                return code;
            }
            if (message == NULL) {
                (void)json_array_append_new(messages, fresh);
            } else {
                (void)json_array_set_new(messages, i, fresh);
            }
            message = json_array_get(messages, i);
        }
        count_message(progress, message);
    }
    return CLI_DONE;
}

/* The API has no long poll: ask again after a pause that grows to two seconds. */
static void pause_before(int turn)
{
    long pause_ms = 100L + 100L * turn;
    pause_ms = pause_ms > 2000 ? 2000 : pause_ms;
    const struct timespec pause = {.tv_sec = pause_ms / 1000,
                                   .tv_nsec = pause_ms % 1000 * 1000000L};
    (void)nanosleep(&pause, NULL); /* Being woken early only asks early. */
}

static int follow(const struct send_options *o, const json_t *answers, json_t *messages)
{
    struct err err;
    struct client *client = NULL;
    if (client_open(&o->common, CLIENT_INSPECT, &client, &err) != ERR_OK) {
        return cli_fail(&cli_send_command, CLI_USAGE, "%s", err.text);
    }
    int64_t start_ms = clock_mono_ms();
    struct progress progress = {0};
    int code = CLI_DONE;
    for (int turn = 0;; turn++) {
        code = look(client, answers, messages, &progress);
        if (code != CLI_DONE) {
            break;
        }
        show_progress(&progress);
        if (progress.open == 0) {
            code = progress.delivered == progress.total ? CLI_DONE : CLI_REFUSED;
            break;
        }
        if (o->timeout_ms > 0 && clock_mono_ms() - start_ms > o->timeout_ms) {
            code = cli_fail(&cli_send_command, CLI_TRY_LATER, "%zu recipients are still waiting",
                            progress.open);
            break;
        }
        pause_before(turn);
    }
    client_close(&client);
    return code;
}

/* ---- Output ---- */

static int print_answers(const struct send_options *o, const json_t *answers, bool is_folder)
{
    if (o->common.json) {
        return status_print_json(&cli_send_command,
                                 is_folder ? answers : json_array_get(answers, 0));
    }
    static const char *const heads[] = {"ID", "ACCEPTED", "REJECTED", "BATCHES", "FILE"};
    struct cli_table table;
    cli_table_init(&table, heads, is_folder ? 5 : 4);
    for (size_t i = 0; i < json_array_size(answers); i++) {
        const json_t *answer = json_array_get(answers, i);
        cli_table_cell(&table, status_text(answer, "id"));
        cli_table_number(&table, json_integer_value(json_object_get(answer, "accepted")));
        cli_table_number(&table, (long long)json_array_size(json_object_get(answer, "rejected")));
        cli_table_number(&table, json_integer_value(json_object_get(answer, "batches")));
        if (is_folder) {
            cli_table_cell(&table, status_text(answer, "file"));
        }
    }
    cli_table_print(&table, stdout);
    cli_table_release(&table);
    return cli_write(&cli_send_command, SPAN_LIT(""));
}

static int print_messages(const struct send_options *o, const json_t *messages, bool is_folder)
{
    if (o->common.json) {
        return status_print_json(&cli_send_command,
                                 is_folder ? messages : json_array_get(messages, 0));
    }
    int code = CLI_DONE;
    for (size_t i = 0; i < json_array_size(messages) && code == CLI_DONE; i++) {
        (void)printf("%s", i > 0 ? "\n" : "");
        code = status_print(&cli_send_command, json_array_get(messages, i), false);
    }
    return code;
}

static int finish(const struct send_options *o, struct sent *sent, bool is_folder)
{
    if (json_array_size(sent->answers) == 0) {
        return sent->code;
    }
    int code = CLI_DONE;
    if (!o->wait) {
        code = print_answers(o, sent->answers, is_folder);
        return code != CLI_DONE ? code : sent->code;
    }
    if (!o->common.json) {
        for (size_t i = 0; i < json_array_size(sent->answers); i++) {
            (void)cli_fail(&cli_send_command, 0, "accepted as %s",
                           status_text(json_array_get(sent->answers, i), "id"));
        }
    }
    json_t *messages = json_array();
    worse(sent, follow(o, sent->answers, messages));
    if (json_array_size(messages) > 0) {
        code = print_messages(o, messages, is_folder);
    }
    json_decref(messages);
    return code != CLI_DONE ? code : sent->code;
}

/* ---- The command ---- */

static bool is_folder_path(const char *path)
{
    struct stat facts;
    return path != NULL && stat(path, &facts) == 0 && S_ISDIR(facts.st_mode);
}

static int check_use(const struct send_options *o, const char *file)
{
    bool composes = o->subject != NULL || o->text != NULL || o->html != NULL ||
                    json_array_size(o->attachments) > 0 || json_object_size(o->headers) > 0;
    if (file != NULL && composes) {
        return cli_usage(
            &cli_send_command,
            "a ready message takes no --subject, --text, --html, --attach or --header");
    }
    if (file == NULL && o->text == NULL && o->html == NULL &&
        json_array_size(o->attachments) == 0) {
        return cli_usage(&cli_send_command,
                         "there is nothing to send: give a file, or --text, --html or --attach");
    }
    if (file == NULL &&
        (o->from == NULL ||
         json_array_size(o->to) + json_array_size(o->cc) + json_array_size(o->bcc) == 0)) {
        return cli_usage(&cli_send_command, "give --from and at least one --to, --cc or --bcc");
    }
    return CLI_DONE;
}

static int send_all(const struct send_options *o, const char *file)
{
    int code = check_use(o, file);
    if (code != CLI_DONE) {
        return code;
    }
    struct err err;
    struct client *client = NULL;
    if (client_open(&o->common, CLIENT_SUBMIT, &client, &err) != ERR_OK) {
        return cli_usage(&cli_send_command, "%s", err.text);
    }
    struct sent sent = {.answers = json_array(), .code = CLI_DONE};
    bool is_folder = is_folder_path(file);
    if (file == NULL) {
        code = send_composed(o, client, &sent);
    } else if (is_folder) {
        code = send_folder(o, client, file, &sent);
    } else {
        code = send_file(o, client, file, NULL, &sent);
    }
    client_close(&client);
    if (code != CLI_USAGE) {
        int finished = finish(o, &sent, is_folder);
        code = finished != CLI_DONE ? finished : code;
    }
    json_decref(sent.answers);
    return code;
}

static int parse(struct send_options *o, int argc, char **argv)
{
    static const struct option options[] = {
        {"from", required_argument, NULL, OPTION_FROM},
        {"to", required_argument, NULL, OPTION_TO},
        {"cc", required_argument, NULL, OPTION_CC},
        {"bcc", required_argument, NULL, OPTION_BCC},
        {"subject", required_argument, NULL, OPTION_SUBJECT},
        {"text", required_argument, NULL, OPTION_TEXT},
        {"html", required_argument, NULL, OPTION_HTML},
        {"attach", required_argument, NULL, OPTION_ATTACH},
        {"header", required_argument, NULL, OPTION_HEADER},
        {"lane", required_argument, NULL, OPTION_LANE},
        {"idempotency-key", required_argument, NULL, OPTION_KEY},
        {"wait", no_argument, NULL, OPTION_WAIT},
        {"timeout", required_argument, NULL, OPTION_TIMEOUT},
        CLI_COMMON_OPTIONS,
        {0}};
    for (int option = 0; (option = getopt_long(argc, argv, "c:jh", options, NULL)) != -1;) {
        if (option >= CLI_OPTION_OWN) {
            int code = take_option(o, option, optarg);
            if (code != CLI_DONE) {
                return code;
            }
        } else if (!cli_common_take(&o->common, option, optarg)) {
            return cli_try_help(&cli_send_command);
        }
    }
    return argc - optind > 1 ? cli_usage(&cli_send_command, "one file or folder at a time")
                             : CLI_DONE;
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            return true;
        }
    }
    return false;
}

static int run_send(int argc, char **argv)
{
    if (asks_for_help(argc, argv)) {
        return cli_help(&cli_send_command);
    }
    struct send_options o = {
        .to = json_array(),
        .cc = json_array(),
        .bcc = json_array(),
        .attachments = json_array(),
        .headers = json_object(),
    };
    int code = parse(&o, argc, argv);
    if (code == CLI_DONE) {
        code = send_all(&o, optind < argc ? argv[optind] : NULL);
    }
    json_decref(o.to);
    json_decref(o.cc);
    json_decref(o.bcc);
    json_decref(o.attachments);
    json_decref(o.headers);
    return code;
}

const struct cli_command cli_send_command = {
    .name = "send",
    .summary = "submit a message, an .eml file or a folder of them",
    .usage =
        "Usage: heave send --from ADDRESS --to ADDRESS [...] --subject TEXT --text TEXT [options]\n"
        "       heave send [--from ADDRESS] [--to ADDRESS ...] [options] FILE.eml | FOLDER | -\n"
        "\n"
        "Submits through the HTTP API and prints the message's id. For a ready message the envelope comes from\n"
        "its header unless --from and --to give it. Exit code 75: the gateway says to try again later.\n"
        "\n"
        "      --from ADDRESS          the sender\n"
        "      --to, --cc, --bcc LIST  recipients, commas between them; may be repeated\n"
        "      --subject TEXT\n"
        "      --text TEXT             plain text; - reads standard input\n"
        "      --html TEXT             the same as HTML\n"
        "      --attach FILE           may be repeated\n"
        "      --header \"NAME: VALUE\"  may be repeated\n"
        "      --lane LANE             alert, normal, bulk or a lane of your own\n"
        "      --idempotency-key KEY   the same key submits the same message once (24 h)\n"
        "      --wait                  follow it until every recipient is finished; exit code 0 when all were\n"
        "                              delivered\n"
        "      --timeout DURATION      give up waiting after 30s, 10m, ...\n"
        "  -c, --config FILE           find the gateway by its configuration\n"
        "      --url URL               where it is (also HEAVE_URL); the key is HEAVE_API_KEY\n"
        "      --ca-file FILE          certificates it is verified with\n"
        "      --json                  the API's own objects\n"
        "\n"
        "Example: heave send -c heave.yaml --from ops@contoso.com --to team@contoso.com \\\n"
        "             --subject \"Backup done\" --text \"All good.\" --wait\n",
    .run = run_send,
};
