{{- define "dry-work-hub.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "dry-work-hub.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "dry-work-hub.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dry-work-hub.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "dry-work-hub.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "dry-work-hub.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "dry-work-hub.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "dry-work-hub.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "dry-work-hub.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "dry-work-hub.stream" -}}
{{ .prefix }}_SYMBOLS: {{ join "," .stream.initialSymbols | quote }}
{{ .prefix }}_BASE_URL: {{ .stream.wsOpts.baseURL | quote }}
{{ .prefix }}_PROCESSORS: {{ .stream.wsOpts.processors | int64 | quote }}
{{ .prefix }}_BUFFER_SIZE: {{ .stream.wsOpts.buffer | int64 | quote }}
{{ .prefix }}_RECONNECT_LIMIT: {{ .stream.wsOpts.reconnectLimit | int64 | quote }}
{{ .prefix }}_RECONNECT_DELAY: {{ .stream.wsOpts.reconnectDelay | quote }}
{{- end }}

{{/* The variables of the program, before empty ones are left out. */}}
{{- define "dry-work-hub.variables" -}}
HUB_SINKS: {{ join "," .Values.sinks | quote }}
HUB_SYMBOLS: {{ join "," .Values.symbols | quote }}
HUB_BIND_HOST: {{ .Values.hub.bindHost | quote }}
HUB_HEALTH_HOST: {{ .Values.hub.healthHost | quote }}
HUB_STATUSES: {{ .Values.hub.statuses | quote }}
HUB_BATCH: {{ .Values.hub.batch | quote }}
ALPACA_FEED: {{ .Values.hub.feed | quote }}
ALPACA_OPTION_FEED: {{ .Values.hub.optionFeed | quote }}
ALPACA_STREAM_URL: {{ .Values.hub.streamURL | quote }}
CREAM_ENV: {{ .Values.hub.environment | quote }}
NATS_URL: {{ .Values.nats.url | quote }}
NATS_USER: {{ .Values.nats.user | quote }}
NATS_USE_COMPRESSION: {{ .Values.nats.useCompression | quote }}
NATS_KV_BUCKET: {{ .Values.nats.kvBucket | quote }}
PREFIX: {{ .Values.conf.prefix | quote }}
PROCESSING_TIMEOUT: {{ .Values.conf.processingTimeout | quote }}
HTTP_CLIENT_TIMEOUT: {{ .Values.conf.httpClientTimeout | quote }}
SHUTDOWN_TIMEOUT: {{ .Values.conf.shutdownTimeout | quote }}
ACTION_STREAM: {{ .Values.conf.actionStream | quote }}
DATA_STREAM: {{ .Values.conf.dataStream | quote }}
ORDER_CONSUMER: {{ .Values.conf.orderConsumer | quote }}
CANCEL_CONSUMER: {{ .Values.conf.cancelConsumer | quote }}
ALPACA_URL: {{ .Values.alpaca.url | quote }}
ALPACA_RETRY_LIMIT: {{ .Values.alpaca.retryLimit | int64 | quote }}
ALPACA_RETRY_DELAY: {{ .Values.alpaca.retryDelay | quote }}
ENABLE_ORDERS: {{ .Values.orders.enabled | quote }}
ENABLE_CANCELER: {{ .Values.cancel.enabled | quote }}
ENABLE_TRADE_UPDATER: {{ .Values.tradeupdater.enabled | quote }}
ENABLE_STOCK_STREAM: {{ .Values.stockstream.enabled | quote }}
STOCK_STREAM_FEED_TYPE: {{ .Values.stockstream.wsOpts.feed | quote }}
{{ include "dry-work-hub.stream" (dict "prefix" "STOCK_STREAM" "stream" .Values.stockstream) }}
ENABLE_NEWS_STREAM: {{ .Values.newsstream.enabled | quote }}
{{ include "dry-work-hub.stream" (dict "prefix" "NEWS_STREAM" "stream" .Values.newsstream) }}
ENABLE_GRPC: {{ .Values.subscriptions.enabled | quote }}
GRPC_PORT: {{ .Values.subscriptions.port | int64 | quote }}
GRPC_MAX_CONN_AGE: {{ .Values.subscriptions.maxConnAge | quote }}
GRPC_MAX_CONN_IDLE: {{ .Values.subscriptions.maxConnIdle | quote }}
GRPC_PING_EVERY: {{ .Values.subscriptions.pingEvery | quote }}
GRPC_PING_TIMEOUT: {{ .Values.subscriptions.pingTimeout | quote }}
ENABLE_GRPC_PROXY: {{ .Values.subscriptions.gateway.enabled | quote }}
GRPC_PROXY_PORT: {{ .Values.subscriptions.gateway.port | int64 | quote }}
{{- with .Values.subscriptions.gateway.maxHeaderBytes }}
GRPC_PROXY_MAX_HEADER_BYTES: {{ . | int64 | quote }}
{{- end }}
GRPC_PROXY_SERVER_TIMEOUT: {{ .Values.subscriptions.gateway.serverTimeout | quote }}
GRPC_PROXY_READ_HEADER_TIMEOUT: {{ .Values.subscriptions.gateway.readHeaderTimeout | quote }}
GRPC_PROXY_READ_TIMEOUT: {{ .Values.subscriptions.gateway.readTimeout | quote }}
GRPC_PROXY_WRITE_TIMEOUT: {{ .Values.subscriptions.gateway.writeTimeout | quote }}
GOOGLE_CLOUD_PROJECT: {{ .Values.pubsub.project | quote }}
MARKET_DATA_TOPIC: {{ .Values.pubsub.marketDataTopic | quote }}
CRYPTO_DATA_TOPIC: {{ .Values.pubsub.cryptoDataTopic | quote }}
NEWS_TOPIC_NAME: {{ .Values.pubsub.newsTopic | quote }}
ORDER_UPDATES_TOPIC: {{ .Values.pubsub.orderUpdatesTopic | quote }}
PUBSUB_EMULATOR_HOST: {{ .Values.pubsub.emulatorHost | quote }}
REDIS_HOST: {{ .Values.redis.host | quote }}
REDIS_PORT: {{ .Values.redis.port | int64 | quote }}
REDIS_DB: {{ .Values.redis.db | int64 | quote }}
PROXY_PORT: {{ .Values.websocket.port | int64 | quote }}
STREAM_PROXY_GRPC_PORT: {{ .Values.grpc.port | int64 | quote }}
STREAM_PROXY_HEALTH_PORT: {{ .Values.grpc.healthPort | int64 | quote }}
STREAM_PROXY_METRICS_PORT: {{ .Values.grpc.metricsPort | int64 | quote }}
STREAM_PROXY_HEARTBEAT_INTERVAL_SECS: {{ .Values.grpc.heartbeatIntervalSecs | int64 | quote }}
STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS: {{ .Values.grpc.heartbeatTimeoutSecs | int64 | quote }}
STREAM_PROXY_RECONNECT_DELAY_INITIAL_MS: {{ .Values.grpc.reconnectDelayInitialMs | int64 | quote }}
STREAM_PROXY_RECONNECT_DELAY_MAX_SECS: {{ .Values.grpc.reconnectDelayMaxSecs | int64 | quote }}
STREAM_PROXY_RECONNECT_DELAY_MULTIPLIER: {{ .Values.grpc.reconnectDelayMultiplier | quote }}
STREAM_PROXY_MAX_RECONNECT_ATTEMPTS: {{ .Values.grpc.maxReconnectAttempts | int64 | quote }}
STREAM_PROXY_STOCK_QUOTES_CAPACITY: {{ .Values.grpc.capacity.stockQuotes | int64 | quote }}
STREAM_PROXY_STOCK_TRADES_CAPACITY: {{ .Values.grpc.capacity.stockTrades | int64 | quote }}
STREAM_PROXY_STOCK_BARS_CAPACITY: {{ .Values.grpc.capacity.stockBars | int64 | quote }}
STREAM_PROXY_OPTIONS_QUOTES_CAPACITY: {{ .Values.grpc.capacity.optionsQuotes | int64 | quote }}
STREAM_PROXY_OPTIONS_TRADES_CAPACITY: {{ .Values.grpc.capacity.optionsTrades | int64 | quote }}
STREAM_PROXY_ORDER_UPDATES_CAPACITY: {{ .Values.grpc.capacity.orderUpdates | int64 | quote }}
LOG_LEVEL: {{ .Values.logging.level | quote }}
LOG_FMT: {{ .Values.logging.fmt | quote }}
LOG_SRC: {{ .Values.logging.src | quote }}
LOG_EXPORTER: {{ .Values.logging.exporter | quote }}
DISABLE_METRICS: {{ .Values.metrics.disabled | quote }}
METRICS_PORT: {{ .Values.metrics.port | int64 | quote }}
METRICS_WRITE_TIMEOUT: {{ .Values.metrics.writeTimeout | quote }}
METRICS_ERR_POLICY: {{ .Values.metrics.errPolicy | quote }}
METRICS_MAX_REQ_IN_FLIGHT: {{ .Values.metrics.maxReqInFlight | int64 | quote }}
DISABLE_HEALTH: {{ .Values.health.disabled | quote }}
HEALTH_PORT: {{ .Values.health.port | int64 | quote }}
HEALTH_PING_INTERVAL: {{ .Values.health.pingInterval | quote }}
DISABLE_TRACING: {{ .Values.tracing.disabled | quote }}
TRACE_EXPORTER: {{ .Values.tracing.exporter | quote }}
TRACE_EXPORTER_URL: {{ .Values.tracing.exportURL | quote }}
TRACE_EXPORTER_TIMEOUT: {{ .Values.tracing.timeout | quote }}
OTEL_SERVICE_NAME: {{ .Values.tracing.serviceName | quote }}
{{- end }}

{{/* The listening ports of the parts that are on, as name: number. */}}
{{- define "dry-work-hub.ports" -}}
{{- if has "websocket" .Values.sinks }}
websocket: {{ .Values.websocket.port | int64 }}
{{- end }}
{{- if has "grpc" .Values.sinks }}
grpc: {{ .Values.grpc.port | int64 }}
{{- end }}
{{- if .Values.subscriptions.enabled }}
subscriptions: {{ .Values.subscriptions.port | int64 }}
{{- end }}
{{- if .Values.subscriptions.gateway.enabled }}
gateway: {{ .Values.subscriptions.gateway.port | int64 }}
{{- end }}
health: {{ .Values.grpc.healthPort | int64 }}
stream-metrics: {{ .Values.grpc.metricsPort | int64 }}
{{- if not .Values.health.disabled }}
grpc-health: {{ .Values.health.port | int64 }}
{{- end }}
{{- if not .Values.metrics.disabled }}
metrics: {{ .Values.metrics.port | int64 }}
{{- end }}
{{- end }}

{{- define "dry-work-hub.unlimited" -}}
max_consumers: -1
max_msgs: -1
max_msgs_per_subject: -1
max_bytes: -1
max_msg_size: -1
max_age: 0
allow_direct: true
storage: memory
discard: old
num_replicas: 1
{{- end }}

{{- define "dry-work-hub.consumer" -}}
ack_policy: explicit
deliver_policy: all
replay_policy: instant
max_deliver: 3
num_replicas: 1
{{- end }}

{{/* What the init job makes, file name: settings. Names, subjects and retention are not for the values to change. */}}
{{- define "dry-work-hub.natsFiles" -}}
{{- $conf := .Values.conf }}
{{- $files := dict }}
{{- $stream := fromYaml (include "dry-work-hub.unlimited" .) }}
{{- $action := dict "duplicate_window" 20000000000 "compression" "s2" }}
{{- $fixed := dict "name" $conf.actionStream "subjects" (list (printf "%s.action.v0.>" $conf.prefix)) "retention" "workqueue" }}
{{- $_ := set $files (printf "stream.%s.json" $conf.actionStream) (mustMergeOverwrite (deepCopy $stream) $action (deepCopy .Values.nats.initJob.actionStream) $fixed) }}
{{- $data := dict "duplicate_window" 120000000000 "compression" "none" }}
{{- $fixed := dict "name" $conf.dataStream "subjects" (list (printf "%s.data.v0.>" $conf.prefix)) "retention" "interest" }}
{{- $_ := set $files (printf "stream.%s.json" $conf.dataStream) (mustMergeOverwrite (deepCopy $stream) $data (deepCopy .Values.nats.initJob.dataStream) $fixed) }}
{{- $consumer := fromYaml (include "dry-work-hub.consumer" .) }}
{{- $rows := list
  (list .Values.orders $conf.actionStream $conf.orderConsumer "action.v0.orders.*")
  (list .Values.cancel $conf.actionStream $conf.cancelConsumer "action.v0.cancel.*")
  (list .Values.tradeupdater $conf.dataStream "nalpaca-tradeupdater-consumer-v0" "data.v0.tradeupdates.*") }}
{{- range $rows }}
{{- $part := index . 0 }}
{{- if $part.enabled }}
{{- $name := index . 2 }}
{{- $fixed := dict "name" $name "durable_name" $name "filter_subject" (printf "%s.%s" $conf.prefix (index . 3)) }}
{{- $_ := set $files (printf "consumer.%s.%s.json" (index . 1) $name) (mustMergeOverwrite (deepCopy $consumer) (deepCopy $part.consumerConfig) $fixed) }}
{{- end }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{- define "dry-work-hub.hasNats" -}}
{{- if or (has "nats" .Values.sinks) .Values.orders.enabled .Values.cancel.enabled .Values.tradeupdater.enabled .Values.stockstream.enabled .Values.newsstream.enabled -}}
true
{{- end }}
{{- end }}
