/* Many readers of event streams in one loop of epoll: what the benchmarks put in front of a server.
 *
 *     load [--users U] [--rate R] [--ready TEXT] ADDRESS PORT STREAMS REQUEST-FILE
 *
 * Opens STREAMS connections to an IPv4 address, at most R of them (200) on their way at once, and sends the request in
 * the file on each: `%d` in it becomes the reader's number modulo U (1), its user, and `%s` becomes the header field
 * Last-Event-ID, with its line's end, or nothing. A stream is open when it has answered 200 and, if there is a TEXT, a
 * line that begins with it.
 *
 * Each event of a user has a serial number in its data, `#00000042#`: 1, 2, 3 and so on. The bodies are read as HTTP and
 * as event streams, cut anywhere. Commands come on stdin, a line each; the answer is a line of JSON on stdout. Seconds are
 * of CLOCK_MONOTONIC, `cpu` is what this program has used so far.
 *
 *     opened [LIMIT]    once all are open or refused, or LIMIT seconds (60) are over: {"opened": how many, "refused": how
 *                       many, "seconds": since the connecting began, "cpu": seconds}
 *     until D [LIMIT]   once D deliveries have come since the start, or LIMIT seconds (60) are over: {"deliveries": how
 *                       many, "at": when the last of them came, "bytes": of all that has come, "cpu": seconds}. What
 *                       comes twice counts once.
 *     times             {"serial": [how many readers, when the first, the median, the last of them had it]} for all that
 *                       came since the last `times`; the median is that of all open streams: it is for one user
 *     check             {"complete": readers that have had 1, 2, 3 to the last serial that any reader of their user had,
 *                       each once and in order, "missing": what others have not had, "twice": what came again or late,
 *                       "open": streams that are open now}
 *     close             close all: {"closed": how many}
 *     again             close all and open them again with the id of the last event that each had: {"again": STREAMS};
 *                       then `opened`
 *     quit              end, as the end of stdin does
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    DIGITS = 8,
    ID_SIZE = 48,           /* of an event's id, the end included: nchan's have 12 and more bytes */
    HEAD_SIZE = 8192,       /* of a response's head */
    SERIALS = 1 << 22,      /* the most there may be; what is not used takes no memory */
    AT_ONCE = 512,          /* sockets in one answer of the kernel */
    BUFFER = 256 * 1024,
    PER_ADDRESS = 20000,    /* connections from one address of our own before the next one's turn: ports run out */
    STDIN = INT32_MAX,
};

/* Where a reader is in its response; from CHUNK_SIZE on in a body. Those before OPEN_FROM are on their way. */
enum state { CLOSED, CONNECTING, HEAD, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, PLAIN };

struct reader {
    int fd;
    enum state state;
    bool open;
    uint64_t chunk;              /* bytes of the chunk that are still to come, or its size as far as it was read */
    /* of the stream's line */
    uint32_t column;
    bool id_line;
    uint32_t ready;              /* bytes of TEXT that the line has begun with */
    /* of the serial number */
    int digits;                  /* those that were read, -1 outside of it */
    uint32_t value;
    /* of the event that is being read: 0 if it has none */
    uint32_t serial, id_length;
    char next_id[ID_SIZE];
    /* of all events */
    uint32_t last, seen, twice;
    char id[ID_SIZE];
    char *head;                  /* while it is read */
    uint32_t head_length;
};

struct serial {
    uint32_t count;
    double first, median, last;
};

static struct reader *readers;
static struct serial *serials;
static uint32_t *greatest;       /* serial of each user */
static uint32_t streams, users = 1, rate = 200, highest;
static uint32_t started, on_their_way, opened, refused;
static const char *ready_text = "";
static char *request;
static struct sockaddr_in server;
static uint64_t connects, bytes, deliveries, target = UINT64_MAX;
static double began, last_opened, received_at, target_at;
static int poller;
static char buffer[BUFFER];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* --- events ------------------------------------------------------------------------------------------------------- */

static void deliver(struct reader *reader, uint32_t number)
{
    if (number == 0 || number >= SERIALS) {
        fprintf(stderr, "expected serial numbers from 1 to %d, got %u\n", SERIALS - 1, number);
        exit(1);
    }
    if (number <= reader->last) {
        reader->twice++;
        return;
    }
    reader->last = number;
    reader->seen++;
    uint32_t user = (reader - readers) % users;
    if (number > greatest[user])
        greatest[user] = number;
    if (number > highest)
        highest = number;
    struct serial *serial = &serials[number];
    if (serial->count++ == 0)
        serial->first = received_at;
    if (serial->count == (opened + 1) / 2)
        serial->median = received_at;
    serial->last = received_at;
    if (++deliveries <= target)
        target_at = received_at;
}

/* Look for a serial number in a part of a line. */
static void scan_serial(struct reader *reader, const char *at, const char *end)
{
    while (at < end) {
        if (reader->digits < 0) {
            at = memchr(at, '#', end - at);
            if (at == NULL)
                return;
            at++;
            reader->digits = 0;
            reader->value = 0;
        } else if (*at >= '0' && *at <= '9' && reader->digits < DIGITS) {
            reader->value = reader->value * 10 + (*at++ - '0');
            reader->digits++;
        } else if (*at == '#' && reader->digits == DIGITS) {
            at++;
            reader->digits = -1;
            reader->serial = reader->value;
        } else {
            reader->digits = -1; /* the same byte may begin one */
        }
    }
}

static void set_open(struct reader *reader)
{
    reader->open = true;
    opened++;
    on_their_way--;
    last_opened = now();
}

/* The beginning of a line: is it an event's id, is it what says that the stream is ready? */
static void begin_line(struct reader *reader, char byte)
{
    if (reader->column < 3)
        reader->id_line = byte == "id:"[reader->column] && (reader->column == 0 || reader->id_line);
    else if (reader->id_line && !(reader->column == 3 && byte == ' ') && byte != '\r' &&
             reader->id_length < ID_SIZE - 1)
        reader->next_id[reader->id_length++] = byte;
    if (reader->column == 2 && reader->id_line)
        reader->id_length = 0;
    if (!reader->open && reader->ready == reader->column && ready_text[reader->ready] == byte &&
        ready_text[++reader->ready] == '\0')
        set_open(reader);
    reader->column++;
}

/* An empty line is an event's end: only now is it one, and its id the last one. */
static void end_line(struct reader *reader)
{
    if (reader->column == 0 && reader->id_length) {
        memcpy(reader->id, reader->next_id, reader->id_length);
        reader->id[reader->id_length] = '\0';
        reader->id_length = 0;
    }
    if (reader->column == 0 && reader->serial) {
        deliver(reader, reader->serial);
        reader->serial = 0;
    }
    reader->column = reader->ready = 0;
    reader->id_line = false;
    reader->digits = -1;
}

static void scan(struct reader *reader, const char *at, const char *end)
{
    while (at < end) {
        if (*at == '\n') {
            end_line(reader);
            at++;
        } else if (*at == '\r' && reader->column == 0) {
            at++;
        } else if (reader->column < 3 || reader->id_line || !reader->open) {
            scan_serial(reader, at, at + 1);
            begin_line(reader, *at++);
        } else {
            const char *line_end = memchr(at, '\n', end - at);
            if (line_end == NULL)
                line_end = end;
            scan_serial(reader, at, line_end);
            at = line_end;
        }
    }
}

/* --- HTTP --------------------------------------------------------------------------------------------------------- */

static void leave(struct reader *reader)
{
    if (reader->state == CLOSED)
        return;
    close(reader->fd);
    free(reader->head);
    reader->head = NULL;
    reader->state = CLOSED;
    if (reader->open) {
        reader->open = false;
        opened--;
    } else {
        on_their_way--;
        refused++;
    }
}

static bool is_chunked(const char *head)
{
    const char *field = strcasestr(head, "\r\ntransfer-encoding:");
    return field != NULL && strncasecmp(field + 20 + strspn(field + 20, " "), "chunked", 7) == 0;
}

/* Read what belongs to the head; return where the body begins, NULL if it is still to come or will not come. */
static const char *read_head(struct reader *reader, const char *at, const char *end)
{
    while (at < end && reader->head_length < HEAD_SIZE - 1) {
        reader->head[reader->head_length++] = *at++;
        if (reader->head_length < 4 || memcmp(reader->head + reader->head_length - 4, "\r\n\r\n", 4) != 0)
            continue;
        reader->head[reader->head_length] = '\0';
        if (strncmp(reader->head, "HTTP/1.1 200", 12) != 0 && strncmp(reader->head, "HTTP/1.0 200", 12) != 0) {
            leave(reader);
            return NULL;
        }
        reader->state = is_chunked(reader->head) ? CHUNK_SIZE : PLAIN;
        free(reader->head);
        reader->head = NULL;
        if (*ready_text == '\0')
            set_open(reader);
        return at;
    }
    return NULL;
}

/* Read a chunk's size, its line's end included; return what follows. */
static const char *read_size(struct reader *reader, const char *at, const char *end)
{
    for (; at < end; at++) {
        if (*at >= '0' && *at <= '9')
            reader->chunk = reader->chunk * 16 + (*at - '0');
        else if ((*at | 0x20) >= 'a' && (*at | 0x20) <= 'f')
            reader->chunk = reader->chunk * 16 + ((*at | 0x20) - 'a' + 10);
        else if (*at == '\n') {
            if (reader->chunk == 0)
                leave(reader);
            else
                reader->state = CHUNK_DATA;
            return at + 1;
        }
    }
    return at;
}

static void receive(struct reader *reader, const char *at, const char *end)
{
    if (reader->state == HEAD && (at = read_head(reader, at, end)) == NULL)
        return;
    while (at < end) {
        switch (reader->state) {
        case CHUNK_SIZE:
            at = read_size(reader, at, end);
            break;
        case CHUNK_DATA: {
            uint64_t length = (uint64_t)(end - at) < reader->chunk ? (uint64_t)(end - at) : reader->chunk;
            scan(reader, at, at + length);
            at += length;
            if ((reader->chunk -= length) == 0)
                reader->state = CHUNK_END;
            break;
        }
        case CHUNK_END: /* CR LF */
            if (*at++ == '\n')
                reader->state = CHUNK_SIZE;
            break;
        case PLAIN:
            scan(reader, at, end);
            return;
        default:
            return;
        }
    }
}

/* --- sockets ------------------------------------------------------------------------------------------------------ */

static void set_out(struct reader *reader)
{
    struct sockaddr_in own = {.sin_family = AF_INET};
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + connects++ / PER_ADDRESS % 200);
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    if (ntohl(server.sin_addr.s_addr) >> 24 == 127) { /* the port is chosen on connecting: it may be in use elsewhere */
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
        if (bind(fd, (struct sockaddr *)&own, sizeof own) < 0)
            fail("bind");
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    reader->fd = fd;
    reader->state = CONNECTING;
    reader->open = false;
    reader->chunk = 0;
    reader->column = reader->ready = reader->serial = reader->id_length = reader->head_length = 0;
    reader->id_line = false;
    reader->digits = -1;
    reader->head = malloc(HEAD_SIZE);
    on_their_way++;
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        leave(reader);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = reader - readers};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

static void connect_more(void)
{
    while (started < streams && on_their_way < rate)
        set_out(&readers[started++]);
}

static void ask(struct reader *reader)
{
    static char text[HEAD_SIZE];
    size_t length = 0;
    for (const char *at = request; *at && length < sizeof text - 64 - ID_SIZE; at++) {
        if (at[0] == '%' && at[1] == 'd')
            length += sprintf(text + length, "%u", (uint32_t)(reader - readers) % users);
        else if (at[0] == '%' && at[1] == 's')
            length += *reader->id ? sprintf(text + length, "Last-Event-ID: %s\r\n", reader->id) : 0;
        else {
            text[length++] = *at;
            continue;
        }
        at++;
    }
    reader->state = HEAD;
    if (send(reader->fd, text, length, MSG_NOSIGNAL) != (ssize_t)length)
        leave(reader);
}

static void handle(struct reader *reader, uint32_t events)
{
    if (reader->state == CONNECTING && events & EPOLLOUT && !(events & (EPOLLERR | EPOLLHUP)))
        ask(reader);
    bool ends = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR); /* which it says once: then all of it is read */
    ssize_t length = BUFFER;
    while (reader->state != CLOSED && (ends || (events & EPOLLIN && length == BUFFER))) {
        length = recv(reader->fd, buffer, BUFFER, 0);
        if (length > 0) {
            received_at = now();
            bytes += length;
            receive(reader, buffer, buffer + length);
        } else if (length == 0 || errno != EAGAIN) {
            leave(reader);
        } else {
            return;
        }
    }
}

static void close_all(void)
{
    for (uint32_t n = 0; n < streams; n++)
        leave(&readers[n]);
}

static void begin(void)
{
    close_all();
    started = refused = 0;
    began = last_opened = now();
    connect_more();
}

/* --- commands ----------------------------------------------------------------------------------------------------- */

static void print_times(void)
{
    const char *comma = "";
    printf("{");
    for (uint32_t number = 1; number <= highest; number++) {
        struct serial *serial = &serials[number];
        if (serial->count == 0)
            continue;
        printf("%s\"%u\": [%u, %.7f, %.7f, %.7f]", comma, number, serial->count, serial->first, serial->median,
               serial->last);
        memset(serial, 0, sizeof *serial);
        comma = ", ";
    }
    printf("}\n");
}

static void print_check(void)
{
    uint32_t complete = 0;
    uint64_t missing = 0, twice = 0;
    for (uint32_t n = 0; n < streams; n++) {
        uint32_t lacks = greatest[n % users] - readers[n].seen;
        complete += lacks == 0 && readers[n].twice == 0;
        missing += lacks;
        twice += readers[n].twice;
    }
    printf("{\"complete\": %u, \"missing\": %lu, \"twice\": %lu, \"open\": %u}\n", complete, missing, twice, opened);
}

/* What was asked for and is not answered yet. */
static enum { NOTHING, OPENED, UNTIL } awaited;
static double limit;

static void await(int what, double seconds)
{
    awaited = what;
    limit = now() + seconds;
}

static void answer(void)
{
    bool late = awaited && now() >= limit;
    if (awaited == OPENED && (opened + refused >= streams || late)) {
        printf("{\"opened\": %u, \"refused\": %u, \"seconds\": %.6f, \"cpu\": %.6f}\n", opened, refused,
               last_opened - began, cpu());
        awaited = NOTHING;
    } else if (awaited == UNTIL && (deliveries >= target || late)) {
        printf("{\"deliveries\": %lu, \"at\": %.7f, \"bytes\": %lu, \"cpu\": %.6f}\n", deliveries, target_at, bytes, cpu());
        awaited = NOTHING;
        target = UINT64_MAX; /* who asks for the next one may do so when it has come already */
    }
}

static void obey(const char *line)
{
    double seconds = 60.0;
    uint64_t wanted;
    if (strncmp(line, "opened", 6) == 0) {
        sscanf(line, "opened %lf", &seconds);
        await(OPENED, seconds);
    } else if (sscanf(line, "until %lu %lf", &wanted, &seconds) >= 1) {
        target = wanted;
        await(UNTIL, seconds);
    } else if (strcmp(line, "times") == 0) {
        print_times();
    } else if (strcmp(line, "check") == 0) {
        print_check();
    } else if (strcmp(line, "close") == 0) {
        printf("{\"closed\": %u}\n", opened);
        started = streams;
        close_all();
    } else if (strcmp(line, "again") == 0) {
        printf("{\"again\": %u}\n", streams);
        begin();
    } else if (strcmp(line, "quit") == 0) {
        exit(0);
    } else {
        fprintf(stderr, "expected a command, got %s\n", line);
        exit(1);
    }
}

static void read_commands(void)
{
    static char line[256];
    static size_t length;
    ssize_t got = read(0, line + length, sizeof line - 1 - length);
    if (got <= 0)
        exit(0);
    length += got;
    char *end;
    while ((end = memchr(line, '\n', length)) != NULL) {
        *end++ = '\0';
        obey(line);
        length -= end - line;
        memmove(line, end, length);
    }
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static void turn(void)
{
    struct epoll_event events[AT_ONCE];
    bool told = false;
    int count = epoll_wait(poller, events, AT_ONCE, awaited ? 100 : -1);
    if (count < 0 && errno != EINTR)
        fail("epoll_wait");
    for (int n = 0; n < count; n++) {
        if (events[n].data.u32 == STDIN)
            told = true;
        else
            handle(&readers[events[n].data.u32], events[n].events);
    }
    if (told) /* last: what is said above of a connection may be of one that a command ends */
        read_commands();
    connect_more();
    answer();
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "r");
    char *text = calloc(1, HEAD_SIZE);
    if (file == NULL)
        fail(path);
    if (fread(text, 1, HEAD_SIZE - 1, file) == 0)
        fail(path);
    fclose(file);
    return text;
}

static void usage(void)
{
    fprintf(stderr, "usage: load [--users U] [--rate R] [--ready TEXT] ADDRESS PORT STREAMS REQUEST-FILE\n");
    exit(2);
}

int main(int count, char **arguments)
{
    int at = 1;
    for (; at + 1 < count && strncmp(arguments[at], "--", 2) == 0; at += 2) {
        if (strcmp(arguments[at], "--users") == 0)
            users = atoi(arguments[at + 1]);
        else if (strcmp(arguments[at], "--rate") == 0)
            rate = atoi(arguments[at + 1]);
        else if (strcmp(arguments[at], "--ready") == 0)
            ready_text = arguments[at + 1];
        else
            usage();
    }
    if (count - at != 4 || users < 1 || rate < 1)
        usage();
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(arguments[at + 1]));
    streams = atoi(arguments[at + 2]);
    request = read_file(arguments[at + 3]);
    if (inet_pton(AF_INET, arguments[at], &server.sin_addr) != 1)
        usage();
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    readers = calloc(streams, sizeof *readers);
    serials = calloc(SERIALS, sizeof *serials);
    greatest = calloc(users, sizeof *greatest);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = STDIN};
    if (readers == NULL || serials == NULL || greatest == NULL || epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event) < 0)
        fail("beginning");
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    begin();
    for (;;)
        turn();
}
