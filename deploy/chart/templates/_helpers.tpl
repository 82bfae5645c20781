{{- define "taesar.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "taesar.labels" -}}
app.kubernetes.io/name: taesar
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "taesar.selector" -}}
app.kubernetes.io/name: taesar
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "taesar.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The environment of docker-compose.yml, name for name. An empty value is no value (deploy/taesar-start). */}}
{{- define "taesar.environment" -}}
- name: TAESAR_BUNDLE
  value: {{ .Values.bundle | quote }}
- name: TAESAR_DATABASE_URL
  value: {{ .Values.databaseUrl | quote }}
- name: TAESAR_REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.existingSecret }}, key: redis-url}
- name: TAESAR_INPUT_ROOTS
  value: {{ .Values.inputRoots | quote }}
- name: TAESAR_API_KEYS_FILE
  value: /run/secrets/api_keys
- name: PUBLISH
  value: ""
- name: TAESAR_DEVICE
  value: {{ .Values.device | quote }}
- name: TAESAR_PORT
  value: "8000"
- name: TAESAR_METRICS_PORT
  value: "9000"
- name: PGPASSWORD
  value: ""
- name: PGPASSWORD_FILE
  value: /run/secrets/postgres_password
{{- range $name, $value := .Values.settings }}
- name: TAESAR_{{ $name | upper }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "taesar.container" -}}
image: {{ include "taesar.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "taesar.environment" . | nindent 2 }}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: bundles, mountPath: /bundles, readOnly: true}
  - {name: scratch, mountPath: /scratch}
  - {name: tmp, mountPath: /tmp}
  - {name: secrets, mountPath: /run/secrets, readOnly: true}
{{- end }}

{{- define "taesar.pod" -}}
# A Service called taesar would put TAESAR_PORT and others into the environment, which are settings here.
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
# Longer than TAESAR_SHUTDOWN_SECONDS: what was begun is finished.
terminationGracePeriodSeconds: 40
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: bundles
    persistentVolumeClaim: {claimName: {{ .Values.volumes.bundles.existingClaim }}, readOnly: true}
  - name: data
    {{- if .Values.volumes.data.existingClaim }}
    persistentVolumeClaim: {claimName: {{ .Values.volumes.data.existingClaim }}}
    {{- else }}
    emptyDir: {}
    {{- end }}
  - name: scratch
    emptyDir: {sizeLimit: {{ .Values.volumes.scratchSize }}}
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
  - name: secrets
    secret:
      secretName: {{ .Values.existingSecret }}
      items:
        - {key: api-keys, path: api_keys}
        - {key: postgres-password, path: postgres_password}
{{- end }}
