#include "bench/queue/options.h"

#include "gateway/base/buf.h"

#include <stdio.h>
#include <string.h>

enum row_kind {
    ROW_NUMBER,
    ROW_NUMBERS,
    ROW_WORD,
    ROW_TEXT,
};

struct option_row {
    const char *name;
    enum row_kind kind;
    size_t offset;
    uint64_t min, max;
    const char *argument; /* ROW_WORD: the words, in the order of their values, | between */
    const char *help;
};

#define AT(field) offsetof(struct bench_options, field)

static const struct option_row OPTIONS[] = {
    {"mode", ROW_WORD, AT(mode), 0, 0, "cost|together|enqueue|claims", "what to measure (cost)"},
    {"messages", ROW_NUMBER, AT(messages), 1, 100000000, "N", "a block, or the run (5000)"},
    {"body", ROW_NUMBER, AT(body_bytes), 1, 67108864, "B", "bytes of each message (2048)"},
    {"recipients", ROW_NUMBER, AT(recipients), 1, 50, "R", "of each batch (1)"},
    {"batches", ROW_NUMBER, AT(batches), 1, 200, "K", "of each message (1)"},
    {"waiting", ROW_NUMBERS, AT(waiting), 0, 100000000, "N,N,...",
     "cost: batches that wait meanwhile; each number gets its own Redis (0)"},
    {"where", ROW_WORD, AT(waiting_same), 0, 0, "other|same",
     "cost: they wait in another lane, or ahead in the same (other)"},
    {"in-flight", ROW_NUMBER, AT(in_flight), 1, 100000, "F",
     "messages or settlements that wait for their answers (50)"},
    {"claim", ROW_NUMBER, AT(claim), 1, 1000, "C", "batches asked for by a claim (64)"},
    {"rounds", ROW_NUMBER, AT(rounds), 1, 10000, "N", "cost: blocks of each measurement (5)"},
    {"shards", ROW_NUMBER, AT(shards), 1, 32, "S", "of the queue (1)"},
    {"claims", ROW_NUMBER, AT(claims), 1, 1000000000, "N", "claims: how many in all (200000)"},
    {"handles", ROW_NUMBER, AT(handles), 1, 64, "H", "claims: each with its thread (4)"},
    {"durability", ROW_WORD, AT(fsync), 0, 0, "memory|fsync", "of the private Redis (fsync)"},
    {"folder", ROW_TEXT, AT(folder), 0, 0, "DIR", "where its files lie: a real disk (/var/tmp)"},
};
#define OPTION_COUNT (sizeof(OPTIONS) / sizeof(OPTIONS[0]))

void bench_options_help(void)
{
    printf("heave-queue-bench: what the queue costs, measured at a private Redis.\n\n"
           "usage: heave-queue-bench [options]\n\n");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char left[64];
        (void)snprintf(left, sizeof(left), "--%s %s", OPTIONS[i].name, OPTIONS[i].argument);
        printf("  %-36s %s\n", left, OPTIONS[i].help);
    }
    printf("\nPrints lines of JSON. Exit: 0 measured, 1 something failed, 2 wrong usage.\n");
}

static int read_word(const struct option_row *row, const char *text, unsigned *out)
{
    struct span words = span_of(row->argument);
    for (unsigned value = 0; words.len > 0; value++) {
        if (span_eq(span_cut(&words, '|'), span_of(text))) {
            *out = value;
            return 0;
        }
    }
    return ERR_INVAL;
}

static int read_numbers(const struct option_row *row, const char *text,
                        struct bench_options *options)
{
    struct span rest = span_of(text);
    size_t count = 0;
    while (rest.len > 0 && count < WAITING_LEVELS_MAX) {
        int status = span_to_u64(span_cut(&rest, ','), row->max, &options->waiting[count]);
        if (status != 0) {
            return status;
        }
        count++;
    }
    options->waiting_count = count;
    return count > 0 && rest.len == 0 ? 0 : ERR_INVAL;
}

static int read_value(const struct option_row *row, const char *text, struct bench_options *options)
{
    char *field = (char *)options + row->offset;
    unsigned word = 0;
    uint64_t number = 0;
    int status = 0;
    switch (row->kind) {
    case ROW_NUMBER:
        status = span_to_u64(span_of(text), row->max, &number);
        if (status == 0 && number < row->min) {
            status = ERR_INVAL;
        }
        if (status == 0) {
            memcpy(field, &number, sizeof(number));
        }
        return status;
    case ROW_NUMBERS:
        return read_numbers(row, text, options);
    case ROW_WORD:
        status = read_word(row, text, &word);
        if (status == 0 && row->offset == AT(mode)) {
            options->mode = (enum bench_mode)word;
        } else if (status == 0) {
            *(bool *)field = word == 1;
        }
        return status;
    case ROW_TEXT:
        *(const char **)field = text;
        return 0;
    }
    UNREACHABLE();
}

static const struct option_row *find_row(struct span name)
{
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if (span_eq(name, span_of(OPTIONS[i].name))) {
            return &OPTIONS[i];
        }
    }
    return NULL;
}

int bench_options_read(int argc, char **argv, struct bench_options *options, struct err *err)
{
    *options = (struct bench_options){
        .messages = 5000,
        .body_bytes = 2048,
        .recipients = 1,
        .batches = 1,
        .waiting_count = 1,
        .in_flight = 50,
        .claim = 64,
        .rounds = 5,
        .shards = 1,
        .claims = 200000,
        .handles = 4,
        .fsync = true,
        .folder = "/var/tmp",
    };
    for (int i = 1; i < argc; i++) {
        struct span word = span_of(argv[i]);
        if (span_eq(word, SPAN_LIT("--help"))) {
            options->help = true;
            return 0;
        }
        bool dashes = span_starts(word, SPAN_LIT("--"));
        const struct option_row *row = dashes ? find_row(span_make(word.data + 2, word.len - 2))
                                              : NULL;
        if (row == NULL) {
            return err_set(err, ERR_INVAL, "\"%s\" is not an option; --help lists them.", argv[i]);
        }
        i++;
        if (i == argc || read_value(row, argv[i], options) != 0) {
            return err_set(err, ERR_INVAL, "--%s wants %s.", row->name, row->argument);
        }
    }
    return 0;
}
